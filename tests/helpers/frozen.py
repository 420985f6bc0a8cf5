"""Jobs whose output is frozen in `fixtures/golden/outputs.json`, and what is kept of it.

Of every file a job makes its SHA-256 is kept. Where sums are rounded (rotations, biases that are
fused, the searches of `--observer`) the order of a sum may change the last bit: of each tensor
there, inner products with fixed vectors of signs are kept, and compared within one step of its
dtype. `python -m tests.helpers.frozen` in the root of the repository rewrites the file, after a
change that is meant to change bytes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner

from ctcli import __version__
from ctcli.cli import app
from tests.helpers.frozen_sources import DTYPES, fixed_bytes, make_sources

ROOT = Path(__file__).parent.parent.parent
FROZEN = ROOT / "fixtures" / "golden" / "outputs.json"
PRESETS = (
    *("FP8", "FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "INT8", "W4A16_ASYM", "W4AFP8"),
    *(f"W{bits}A16" for bits in range(2, 9)),
    *(f"W{bits}A8" for bits in range(2, 8)),
    *(f"W{bits}A4" for bits in range(2, 5)),
    *("NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP8A16", "MXFP8"),
)
# One step of each dtype, relative to a value: 2 to the power of 1 - (bits of its significand).
STEPS = {"F64": 2.0**-40, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7, "I8": 2.0**-7}
_VECTORS = 4


@dataclass(frozen=True)
class Job:
    """Commands in order, in the folder of sources.

    Words with @ name a source, or a file below the job's folder.

    Attributes:
        commands: each one line.
        rounded: whether sums are rounded in it, so that weights are held by a bound.
    """

    commands: tuple[str, ...]
    rounded: bool = False


def jobs() -> dict[str, Job]:
    """Every job by its name."""
    return {**_copying(), **_quantizing(), **_surgery(), **_exporting(), **_reading()}


def _copying() -> dict[str, Job]:
    lines = {
        "reindex pylm": "reindex @pylm @out",
        "reindex golden": "reindex @golden @out --max-shard-size 300KiB",
        "reindex edges": "reindex @edges @out --max-shard-size 200KB",
        "reindex experts": "reindex @experts @out",
        "run reindex": "run reindex.toml @pylm @out",
    }
    return {name: Job((line,)) for name, line in lines.items()}


def _quantizing() -> dict[str, Job]:
    static = {
        "FP8": " --input-scales input_scale.safetensors",
        "NVFP4": " --input-scales input_global_scale.safetensors",
    }
    found = {
        f"quantize {source} {name}": f"quantize @{source} @out --scheme {name}{options}"
        for source in ("golden", "edges")
        for name in PRESETS
        for options in [static.get(name, "")]
    }
    own = {
        "weight W4A16_ASYM": "--scheme W4A16_ASYM --compute-dtype weight",
        "weight NVFP4A16": "--scheme NVFP4A16 --compute-dtype weight",
        "weight FP8_BLOCK": "--scheme FP8_BLOCK --compute-dtype weight",
        "channel": "--type int --bits 5 --strategy channel --asymmetric",
        "tensor": "--type int --bits 6 --strategy tensor --format int-quantized",
        "block": "--type int --bits 8 --strategy block --block 16x64",
        "group": "--type int --bits 3 --strategy group --group-size 32 --asymmetric",
        "float": "--type float --bits 8 --strategy tensor",
        "patterns": "--scheme re:.*mlp.*=W4A16 --scheme re:.*self_attn.*=FP8_DYNAMIC",
        "ignore": "--scheme W8A8 --ignore re:.*down_proj --max-shard-size 300KB",
        "config": "--config config.json",
    }
    found |= {f"quantize {name}": f"quantize @golden @out {each}" for name, each in own.items()}
    found |= {
        "quantize skip": "quantize @pylm @out --scheme W4A16 --on-indivisible skip",
        "quantize smaller": "quantize @pylm @out --scheme W4A16 --on-indivisible smaller-group",
        "quantize head": "quantize @pylm @out --scheme FP8_DYNAMIC --targets lm_head",
        "quantize experts": "quantize @experts @out --scheme NVFP4A16",
        "quantize experts groups": "quantize @experts @out --scheme W4A16 --group-size 32",
        "run reindex quantize": "run quantize.toml @golden @out",
    }
    mse = {
        f"quantize mse {name}": f"quantize @golden @out --scheme {name} --observer mse"
        for name in ("W8A8", "INT8 --strategy tensor")
    }
    found["sparsify fours"] = "sparsify @golden @out --pattern 2:4"
    found["sparsify rows"] = "sparsify @pylm @out --density 0.3"
    found["quantize signed"] = "quantize @golden @out --scheme W4A16 --observer signed"
    mse["quantize pnorm"] = (
        "quantize @golden @out --scheme W4A16 --format int-quantized --observer pnorm"
    )
    exact = {name: Job((line,)) for name, line in found.items()}
    return exact | {name: Job((line,), rounded=True) for name, line in mse.items()}


def _surgery() -> dict[str, Job]:
    exact = {
        "fuse-norms golden": "fuse-norms @golden @out",
        "fuse-norms tied": "fuse-norms @tied @out",
        "fuse-norms float32": "fuse-norms @pylm @out --dtype float32",
        "run fuse quantize": "run fuse-quantize.toml @golden @out",
        "rotate R3": "rotate @golden @out --rotations R3",
        "equalize golden": "equalize @golden @out",
        "equalize pylm": "equalize @pylm @out --rounds 2",
        "run equalize quantize": "run equalize.toml @golden @out",
    }
    rounded = {
        "fuse-norms center": "fuse-norms @centred @out --center",
        "rotate golden": "rotate @golden @out",
        "rotate tied": "rotate @tied @out",
        "rotate random-hadamard": "rotate @tied @out --transform-type random-hadamard --seed 7",
        "rotate random-matrix": "rotate @centred @out --transform-type random-matrix",
        "rotate R4": "rotate @tied @out --rotations R1,R2,R4 --block-size 32",
        "run rotate quantize": "run rotate.toml @tied @out",
    }
    return {name: Job((line,)) for name, line in exact.items()} | {
        name: Job((line,), rounded=True) for name, line in rounded.items()
    }


def _exporting() -> dict[str, Job]:
    lines = {f"export-bin v{n}": f"export-bin @pylm @out.bin --version {n}" for n in (0, 1, 2)}
    lines |= {
        "export-bin tokenizer": "export-bin @pylm @out.bin --group-size 32 --tokenizer",
        "export-bin golden": "export-bin @golden @out.bin --max-seq-len 64",
        "run fuse export": "run export.toml @pylm @out.bin",
    }
    return {name: Job((line,)) for name, line in lines.items()}


def _reading() -> dict[str, Job]:
    quantize = "quantize @golden @out --scheme W4A16"
    return {
        "inspect pylm": Job(("inspect @pylm --json --tensors",)),
        "inspect experts": Job(("inspect @experts --json",)),
        "inspect quantized": Job((quantize, "inspect @out --json")),
        "verify": Job((quantize, "verify @out --against @golden --sha256 @made.sha256 --quiet")),
    }


def outcome(job: Job, sources: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Do a job in an empty folder.

    Returns:
        What is kept of every file it makes, by path, and of what a command prints as JSON.
    """
    found: dict[str, Any] = {}
    for line in job.commands:
        words = [_place(word, sources, folder) for word in line.split()]
        with chdir(sources["here"]):  # recipes name files as they were given
            done = CliRunner().invoke(app, words)
        if done.exception:
            raise done.exception
        if words[0] == "inspect":
            printed = json.loads(done.stdout)
            assert printed.pop("source") == words[1]
            found["stdout"] = _sha256(json.dumps(printed).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "README.md":  # the card, which names the version
            name = path.relative_to(folder).as_posix()
            rounded = job.rounded and path.suffix == ".safetensors"
            found[name] = _projections(path) if rounded else _sha256(_content(path))
    return found


def _place(word: str, sources: Mapping[str, Path], folder: Path) -> str:
    if not word.startswith("@"):
        return word
    first, slash, rest = word[1:].partition("/")
    return f"{sources.get(first, folder / first)}{slash}{rest}"


def _content(path: Path) -> bytes:
    """Its bytes, but for the version of ctcli in a recipe, and hashes of such a recipe."""
    raw = path.read_bytes()
    if path.name == "ctcli_recipe.toml":
        stamp = f'ctcli = "{__version__}"'.encode()
        assert raw.startswith(stamp)
        return raw.removeprefix(stamp)
    if path.suffix == ".sha256":
        lines = raw.splitlines(keepends=True)
        told_elsewhere = (b"ctcli_recipe.toml", b"README.md")  # which names the version, too
        return b"".join(line for line in lines if not any(n in line for n in told_elsewhere))
    return raw


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _projections(path: Path) -> dict[str, Any]:
    """Of every tensor: dtype, shape, norm, and inner products with vectors of signs."""
    found: dict[str, Any] = {}
    for name, dtype, shape, raw in _tensors(path):
        values = np.frombuffer(raw, DTYPES[dtype])
        if dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        wide = values.astype(np.float64)
        products = [float(_signs(wide.size, n) @ wide) for n in range(_VECTORS)]
        numbers = [float(f"{number:.9e}") for number in (float(np.linalg.norm(wide)), *products)]
        found[name] = [dtype, shape, *numbers]
    return found


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int], bytes]]:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], entry["shape"], raw[start + begin : start + end]


def _signs(size: int, seed: int) -> NDArray[Any]:
    """Ones and minus ones, [size] float64, the same with any version of numpy."""
    bits = np.frombuffer(fixed_bytes(f"signs {seed}", -(-size // 8)), np.uint8)
    return 1.0 - 2.0 * np.unpackbits(bits)[:size]


def main() -> None:
    """Write what every job makes now to `fixtures/golden/outputs.json`."""
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder))
        found = {}
        for name, job in jobs().items():
            place = Path(folder) / "jobs" / name
            place.mkdir(parents=True)
            found[name] = outcome(job, sources, place)
    lines = (f" {json.dumps(name)}: {json.dumps(kept)}" for name, kept in found.items())
    FROZEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
