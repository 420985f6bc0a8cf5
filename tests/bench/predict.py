"""How long conversions take on several machines, computed from what was measured on one.

A job waits for its slowest part: processors, each machine's network, or the file system that all
share; reading, computing and writing go on side by side. In front of it comes the plan, which
every machine makes; behind it the last file, for which the others wait.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Scheme:
    """A conversion of bfloat16 weights.

    Attributes:
        seconds: of one core, for each GB of source, measured on 2.5 GB.
        ratio: bytes of output for each of source.
    """

    seconds: float
    ratio: float


@dataclass(frozen=True)
class Model:
    """A checkpoint in bfloat16: bytes, tensors, and shards."""

    nbytes: float
    tensors: int
    shards: int


SCHEMES = {
    "W4A16": Scheme(3.4, 0.30),
    "NVFP4A16": Scheme(3.3, 0.32),
    "FP8_DYNAMIC": Scheme(5.2, 0.53),
}
MODELS = {
    "70B": Model(141 * GB, 723, 30),
    "671B": Model(1342 * GB, 45_395, 314),
    "1 T": Model(2054 * GB, 90_000, 460),
}
MACHINES = (1, 4, 16, 64)
CORES = 32
NETWORK = 3.1 * GB  # 25 Gbit/s, each way
FILE_SYSTEMS = {"2 GB/s": 2 * GB, "10 GB/s": 10 * GB, "40 GB/s": 40 * GB}
START_SECONDS = 3.0  # of the interpreter with ctcli's packages and Dask's
PLAN_SECONDS = 4.0 / 45_395  # for each tensor: a dry run on the headers of a 671B model
FILE_SECONDS = 0.03  # for each file of a worker: 200 files of 16 KB


def seconds(model: Model, scheme: Scheme, machines: int, file_system: float) -> float:
    """The predicted time of a job."""
    used = min(machines, model.shards)
    read, written = model.nbytes, model.nbytes * scheme.ratio
    most = -(-model.shards // used) / model.shards  # the largest share of the files
    compute = read * scheme.seconds / GB / CORES * most
    network = max(read, written) / NETWORK * most
    shared = (read + written) / file_system
    overhead = START_SECONDS + PLAN_SECONDS * model.tensors + FILE_SECONDS * model.shards * most
    return overhead + max(compute, network, shared)


def table(name: str) -> list[str]:
    """A table in Markdown of one scheme: rows are models and file systems, columns machines."""
    scheme = SCHEMES[name]
    heads = " | ".join(f"{count} machine{'s' * (count > 1)}" for count in MACHINES)
    lines = [
        f"| {name} | file system | {heads} | no use beyond |",
        f"| --- | --- | {' | '.join(['---'] * len(MACHINES))} | --- |",
    ]
    for label, model in MODELS.items():
        for system, rate in FILE_SYSTEMS.items():
            times = [_minutes(seconds(model, scheme, count, rate)) for count in MACHINES]
            most = enough(model, scheme, rate)
            lines.append(f"| {label} | {system} | {' | '.join(times)} | {most} |")
    return lines


def enough(model: Model, scheme: Scheme, file_system: float) -> int:
    """The number of machines of which twice as many save less than a tenth of the time."""
    count = 1
    while True:
        now = seconds(model, scheme, count, file_system)
        if seconds(model, scheme, 2 * count, file_system) > 0.9 * now:
            return count
        count *= 2


def _minutes(time: float) -> str:
    return f"{time:.0f} s" if time < 100 else f"{time / 60:.1f} min"


def main() -> None:
    """Print the tables as the guide has them."""
    print("\n\n".join("\n".join(table(name)) for name in ("NVFP4A16", "FP8_DYNAMIC")))


if __name__ == "__main__":
    main()
