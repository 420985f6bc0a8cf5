"""Who runs against whom, on which checkpoint. A new command is a new row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.bench.timing import Sample


@dataclass(frozen=True)
class Race:
    """Contenders that do the same job, or a part of it.

    Attributes:
        checkpoint: arguments for `tests.bench.make_checkpoint`; none: {made} is the source.
        commands: a command line for each contender, with {src} and {dst}; ours comes first.
        peers: likewise, of packages that have environments of their own, with {peer} for Python.
        made: a command line that makes {made} once, beforehand, for contenders that read it.
        is_chain: ours does in one pass what the others do one after another.
        is_cold: checkpoints have to be read from the disk.
    """

    checkpoint: tuple[str, ...]
    commands: Mapping[str, str]
    peers: Mapping[str, str] = field(default_factory=dict)
    made: str | None = None
    is_chain: bool = False
    is_cold: bool = False


_LLAMA_1B = (
    *("--hidden", "2048", "--intermediate", "8192", "--layers", "16", "--heads", "32"),
    *("--kv-heads", "8", "--vocabulary", "128256", "--shard-mb", "300"),
)
# The shapes of an 8B model, four layers of it, in one 5 GB shard: what memory depends on.
_LLAMA_8B = (
    *("--hidden", "4096", "--intermediate", "14336", "--layers", "4", "--heads", "32"),
    *("--kv-heads", "8", "--vocabulary", "128256", "--shard-mb", "5000"),
)
# The shapes of Llama-2-7B, four layers of it: with as many key as query heads, as llama2.c's own
# exporter needs them.
_LLAMA_2_7B = (
    *("--hidden", "4096", "--intermediate", "11008", "--layers", "4", "--heads", "32"),
    *("--kv-heads", "32", "--vocabulary", "32000", "--shard-mb", "2500", "--untied"),
)
# As many bytes as the 1B model in 19,000 linears of 65,536 elements each.
_SMALL_TENSORS = (
    *("--hidden", "256", "--intermediate", "256", "--layers", "2700", "--heads", "4"),
    *("--kv-heads", "4", "--vocabulary", "512", "--shard-mb", "300"),
)
# 2.5 GB in shards of 150 MB, no tensor larger than that.
HUB_MODEL = (
    *("--hidden", "2048", "--intermediate", "8192", "--layers", "20", "--heads", "32"),
    *("--kv-heads", "8", "--vocabulary", "32000", "--shard-mb", "150"),
)
_CTCLI = "{python} -m ctcli"
# What a command is made of, from which `floor` tells how fast it can be here.
START, COMPUTING = "its start-up and plan", "it without its bytes"
READING, COPYING = "reading its source", "cp -r of its output"
_RECIPES = "tests/bench/recipes"


def _computing(name: str, command: str, checkpoint: tuple[str, ...]) -> Race:
    """Ours, and what it is made of: start-up, computing, and copying as many bytes."""
    arguments = f"{command} --quiet"
    command = f"{_CTCLI} {arguments}"
    return Race(
        checkpoint,
        {
            f"ctcli {name}": command,
            START: f"{command} --dry-run",
            COMPUTING: f"{{python}} -m tests.bench.computing {arguments}",
            READING: "sh -c 'cat {src}/* > /dev/null'",
            COPYING: "cp -r {made} {dst}",
            "cp -r of its source": "cp -r {src} {dst}",
        },
        made=command.replace("{dst}", "{made}") + " --overwrite",
    )


def floor(samples: Mapping[str, Sequence[Sample]], read: int, written: int, cores: int) -> str:
    """How fast ours can be here: start-up, computing, and its bytes on all cores.

    Args:
        samples: of a race that `_computing` made; or like one that only reads.
        read: bytes of the source.
        written: bytes of the output; or of the other side that is read.
        cores: how many there are.
    """
    ours = next(iter(samples))
    wall = {name: median(run.wall for run in runs) for name, runs in samples.items()}
    processor = {name: median(run.processor for run in runs) for name, runs in samples.items()}
    reading = processor[READING]
    source = read
    if COPYING in processor:
        writing = processor[COPYING] - reading * written / read
    else:
        read, written, writing = read + written, 0, 0.0
    least = wall[COMPUTING] + (reading + writing) / cores
    computing = wall[COMPUTING] - wall[START]
    return (
        f"at best {least:.2f} s: {wall[START]:.2f} start-up and plan, {computing:.2f} computing "
        f"({1e9 * computing * cores / source:.2f} ns a byte of the source on each of {cores} "
        f"cores), {reading / cores:.2f} reading "
        f"{read / 1e9:.1f} GB, {writing / cores:.2f} writing {written / 1e9:.1f} GB; "
        f"{ours} takes {wall[ours] / least:.2f} times that"
    )


def _quantize(scheme: str, checkpoint: tuple[str, ...] = _LLAMA_1B) -> Race:
    return _computing(scheme, f"quantize {{src}} {{dst}} --scheme {scheme}", checkpoint)


def _run(
    recipe: str, scheme: str, checkpoint: tuple[str, ...] = _LLAMA_1B, on_disk: bool = False
) -> Race:
    """All steps in one pass, and the same ones apart: their bytes and work, if not their order.

    Args:
        recipe: its name; it rotates and quantizes, and may fuse norms before.
        scheme: for quantizing alone.
        checkpoint: see `Race`.
        on_disk: from the disk to the disk, as with checkpoints that are larger than the memory.
    """
    options = "--quiet --fsync" if on_disk else "--quiet"
    rotate = f"{_CTCLI} rotate {{src}} {{dst}} {options}"
    quantize = f"{_CTCLI} quantize {{made}} {{dst}} --scheme {scheme} {options}"
    apart = {"ctcli rotate": rotate, "ctcli quantize, rotated": quantize}
    if recipe.startswith("fuse"):
        apart["ctcli fuse-norms"] = f"{_CTCLI} fuse-norms {{src}} {{dst}} {options}"
    run = f"{_CTCLI} run {_RECIPES}/{recipe}.toml {{src}} {{dst}} {options}"
    made = rotate.replace("{dst}", "{made}") + " --overwrite"
    commands = {f"ctcli run {recipe}": run, **apart}
    return Race(checkpoint, commands, made=made, is_chain=True, is_cold=on_disk)


def _source(method: str, command: str, **peers: str) -> Race:
    """Ours on a source that is quantized already, beside copying that.

    Args:
        method: how it is, for `tests.bench.make_packed`.
        command: ours; the source and DST are left out.
        peers: a script's arguments behind the same two, by its name in this folder.
    """
    name, *options = command.split()
    ours = " ".join([_CTCLI, name, "{made} {dst}", *options, "--quiet"])
    return Race(
        (),
        {f"ctcli {command}": ours, "cp -r of its source": "cp -r {made} {dst}"},
        {
            script: f"{{peer}} tests/bench/{script}.py {{made}} {{dst}} {arguments}"
            for script, arguments in peers.items()
        },
        f"{{python}} -m tests.bench.make_packed {method} {{made}} {{mb}}",
    )


_VERIFY = "verify {made} --against {src} --quiet"
_MACHINES = f"{_CTCLI} quantize {{src}} {{dst}} --scheme NVFP4A16 --quiet"
_SCHEMES = (
    *("FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W4A16"),
    *("W4A16_ASYM", "NVFP4A16", "MXFP4A16", "MXFP8A16"),
)
RACES = {
    "reindex": Race(
        _LLAMA_1B,
        {
            "ctcli reindex": f"{_CTCLI} reindex {{src}} {{dst}} --quiet",
            "cp -r": "cp -r {src} {dst}",
        },
    ),
    **{
        name: _computing(name, f"{name} {{src}} {{dst}}", _LLAMA_1B)
        for name in ("fuse-norms", "rotate")
    },
    "verify-against": Race(
        _LLAMA_1B,
        {
            "ctcli verify --against": f"{_CTCLI} {_VERIFY}",
            START: f"sh -c '{_CTCLI} inspect {{made}} > /dev/null'",
            # Of other bytes than those that were written, all differ.
            COMPUTING: f"sh -c '{{python}} -m tests.bench.computing {_VERIFY} > /dev/null || true'",
            READING: "sh -c 'cat {src}/* {made}/* > /dev/null'",
        },
        made=f"{_CTCLI} quantize {{src}} {{made}} --scheme W4A16 --quiet --overwrite",
    ),
    "run": _computing("run", f"run {_RECIPES}/rotate-W4A16.toml {{src}} {{dst}}", _LLAMA_1B),
    **{
        f"run-{scheme}": _run(f"rotate-{scheme}", scheme)
        for scheme in ("W4A16", "FP8_DYNAMIC", "NVFP4A16")
    },
    # The same threads, in two processes and in one; and what it costs to have a cluster at all.
    "cluster": Race(
        HUB_MODEL,
        {
            "cluster local:2": f"{_MACHINES} --cluster local:2 --num-workers 1",
            "one process": f"{_MACHINES} --num-workers 2",
            "parts 1/2, then 2/2": (f"sh -c '{_MACHINES} --part 1/2 && {_MACHINES} --part 2/2'"),
        },
    ),
    "run-fuse-W4A16": _run("fuse-rotate-W4A16", "W4A16"),
    "run-W4A16-on-disk": _run("rotate-W4A16", "W4A16", on_disk=True),
    "run-8B-shapes": _run("rotate-FP8_DYNAMIC", "FP8_DYNAMIC", _LLAMA_8B),
    **{f"quantize-{scheme}": _quantize(scheme) for scheme in _SCHEMES},
    "quantize-W4A16-mse": _computing(
        "W4A16 mse", "quantize {src} {dst} --scheme W4A16 --observer mse", _LLAMA_1B
    ),
    "quantize-8B-shapes": _quantize("W4A16", _LLAMA_8B),
    "dequantize-FP8": _source("fp8-blocks", "dequantize", convert_checkpoint="fp8"),
    **{
        f"FP8-to-{scheme}": _source(
            "fp8-blocks", f"quantize --scheme {scheme}", model_free_ptq=f"{scheme} fp8"
        )
        for scheme in ("NVFP4A16", "W4A16")
    },
    **{f"dequantize-{method}": _source(method, "dequantize") for method in ("awq", "gptq")},
    "convert-awq": _source("awq", "convert", convert_checkpoint="awq"),
    "convert-gptq": _source("gptq", "convert"),
    # These move bytes only.
    **{
        f"convert-{method}": _source(method, "convert")
        for method in ("fp8-blocks", "fp8-rows", "fp8-tensor")
    },
    "convert-nvfp4": _source("nvfp4", "convert", convert_checkpoint="nvfp4"),
    "quantize-small-tensors": _quantize("FP8_DYNAMIC", _SMALL_TENSORS),
    "export-bin": _computing("export-bin", "export-bin {src} {dst}", _LLAMA_2_7B),
}
