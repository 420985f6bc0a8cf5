"""Models by commands: what each record admits, for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from ctcli.models.architecture import Operation
from ctcli.models.families import FAMILIES, WITHOUT_RECORD
from ctcli.models.family import Family

COMMANDS: Mapping[str, Operation] = {
    "fuse-norms": "fuse-norms",
    "rotate R1": "R1",
    "rotate R2": "R2",
    "rotate R4": "R4",
}
_BEHIND = "norms behind blocks"


def refusals_of(family: Family) -> dict[Operation, str]:
    """What a record does not admit whatever its config.json says, and why."""
    found: dict[Operation, str] = {}
    if any(not norm.feeds for norm in family.norms):
        found["R1"] = _BEHIND
    outputs = [f"{mlp.module}.{mlp.output}" for mlp in family.mlps]
    if family.transposed or any("*" in output.rpartition(".")[2] for output in outputs):
        found["R4"] = "MLPs stored together or transposed"
    return {**found, **dict(family.refusals)}


def rows() -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """Each model type, and for each of `COMMANDS` why it is refused; None: it is exact.

    All types are quantized, and read by `inspect` and `verify`, known or not.
    """
    for name, family in FAMILIES.items():
        refused = refusals_of(family)
        yield name, tuple(refused.get(operation) for operation in COMMANDS.values())


def markdown() -> str:
    """The tables of the guide: for how many types each command is exact, and what is refused."""
    found = dict(rows())
    refused: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, reasons in found.items():
        for command, reason in zip(COMMANDS, reasons, strict=True):
            if reason:
                refused[command, reason].append(name)
    counts = [
        (f"`{command}`", len(found) - sum(len(n) for (c, _), n in refused.items() if c == command))
        for command in COMMANDS
    ]
    both = sum(not (r1 or r2) for _, r1, r2, _ in found.values())
    lines = [f"| of {len(found)} model types | exact |", "| --- | --- |"]
    lines += [f"| {command} | {count} |" for command, count in counts]
    lines += [f"| R1 and R2 together | {both} |", "", "| refused | why | model types |"]
    lines += ["| --- | --- | --- |"]
    for command in COMMANDS:
        lines += [
            f"| `{command}` | {reason} | {', '.join(names)} |"
            for (asked, reason), names in refused.items()
            if asked == command
        ]
    lines += [f"| all | {why} | {name} |" for name, why in WITHOUT_RECORD.items()]
    exact = [name for name, reasons in found.items() if not any(reasons)]
    return "\n".join([*lines, "", f"Nothing is refused for {', '.join(exact)}."])
