"""The command line: options in, one thin function a command, exit codes out."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, cast, get_type_hints

import typer

from ctcli import __version__
from ctcli.checkpoint import Checkpoint
from ctcli.console import Report, Result, Terminal
from ctcli.engine import execute
from ctcli.errors import CtcliError, Stopped
from ctcli.plan import Plan, Settings, check_resources, make_plan
from ctcli.rewrites.export_bin import ExportOptions
from ctcli.rewrites.export_bin import export_bin as export_checkpoint
from ctcli.rewrites.export_tokenizer import TOKENIZER_NAME
from ctcli.rewrites.matrices import TransformType
from ctcli.rewrites.quantize_options import quantize_options
from ctcli.rewrites.reindex import reindex as reindex_checkpoint
from ctcli.rewrites.rotate import Precision, RotationName
from ctcli.rewrites.selection import OnIndivisible
from ctcli.schemes.family import ComputeDtype, Observer
from ctcli.schemes.parsing import Overrides
from ctcli.storage.destination import check_destination
from ctcli.storage.layout import Layout, lay_out
from ctcli.storage.llama2c import Version, lay_out_bin
from ctcli.storage.opening import local_directory, open_checkpoint
from ctcli.units import format_bytes, format_seconds, parse_bytes

app = typer.Typer(
    name="ctcli",
    help="Rewrite sharded safetensors checkpoints without loading the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


OFF = "off"


def _size(text: str | int) -> int:
    try:
        return parse_bytes(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _path(text: str) -> str:
    if not text:
        raise typer.BadParameter("an empty path.")
    return text


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        parser=_path,
        help="Checkpoint: a local directory or a hub id (org/name).",
    ),
]
Destination = Annotated[
    Path,
    typer.Argument(
        metavar="DST",
        parser=lambda text: Path(_path(str(text))),
        help="Directory to make; it must not exist yet, or be empty.",
    ),
]


BinFile = Annotated[
    Path,
    typer.Argument(
        metavar="OUT.bin",
        parser=lambda text: Path(_path(str(text))),
        help="File to make; it must not exist yet.",
    ),
]


@dataclass(frozen=True)
class Shared:
    """The options that every command has."""

    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REV", show_default="main", help="Branch, tag or commit of a hub SRC."
        ),
    ] = None
    num_workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the cores", help="Threads.")
    ] = None
    max_memory: Annotated[
        int,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            show_default="2GB",
            help="Bytes that all jobs under way may hold together (500MB, 2GiB).",
        ),
    ] = parse_bytes("2GB")
    max_shard_size: Annotated[
        int | None,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            show_default="the shards stay",
            help="Lay the checkpoint out anew, in natural order and shards of at most so many "
            "bytes of tensor data (5GB, 300MiB).",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", show_default=OFF, help="Check everything and say what would be done."
        ),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", show_default=OFF, help="Replace DST, once its successor is complete."
        ),
    ] = False
    fsync: Annotated[
        bool,
        typer.Option(
            "--fsync",
            show_default=OFF,
            help="Put each file on the disk before it counts as complete: survives a power cut.",
        ),
    ] = False
    json: Annotated[
        bool,
        typer.Option(
            "--json", show_default=OFF, help="Print the result as one JSON object on stdout."
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", show_default=OFF, help="Print errors only (and --json's object)."
        ),
    ] = False

    def settings(self, link: bool = False) -> Settings:
        """These options as the engine takes them."""
        return Settings(
            workers=self.num_workers or _cores(),
            max_memory=self.max_memory,
            overwrite=self.overwrite,
            fsync=self.fsync,
            link=link,
        )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer than os.cpu_count() in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command, with the fields of `Shared` in place of its parameter `shared`."""
    names = [field.name for field in fields(Shared)]

    def command(**options: Any) -> None:
        function(shared=Shared(**{name: options.pop(name) for name in names}), **options)

    own = [p for p in inspect.signature(function).parameters.values() if p.name != "shared"]
    every = [*own, *inspect.signature(Shared).parameters.values()]
    hints = get_type_hints(function, include_extras=True) | get_type_hints(
        Shared, include_extras=True
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by inspect
        [p.replace(kind=keyword, annotation=hints[p.name]) for p in every]
    )
    command.__annotations__ = {p.name: hints[p.name] for p in every}
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return app.command(name=function.__name__.replace("_", "-"), help=text)(command)


def _rewrite(
    source: str,
    destination: Path,
    rewrite: Callable[[Checkpoint], tuple[Checkpoint, Report]],
    shared: Shared,
    settings: Settings,
    lay_out: Callable[[Checkpoint], Layout] = lay_out,
) -> None:
    """Open, rewrite, plan, check; then, unless it is a dry run, write."""
    terminal = Terminal(shared.quiet, shared.json)
    directory = local_directory(source)
    if directory and shared.revision:
        raise typer.BadParameter("--revision is for hub ids, and SRC is a directory.")
    check_destination(destination, directory, shared.overwrite, lay_out is lay_out_bin)
    checkpoint, report = rewrite(open_checkpoint(source, shared.revision))
    for warning in checkpoint.warnings:
        terminal.warn(warning)
    plan = make_plan(lay_out(checkpoint), destination, settings)
    check_resources(plan)
    start = time.monotonic()
    if not shared.dry_run:
        step = checkpoint.steps[-1]["use"]
        with terminal.progress(step, plan.fetch_bytes + plan.write_bytes) as advance:
            report = report.with_errors(execute(plan, advance))
    terminal.show(_result(source, checkpoint, report, plan, shared, time.monotonic() - start))


def _result(
    source: str,
    checkpoint: Checkpoint,
    report: Report,
    plan: Plan,
    shared: Shared,
    seconds: float,
) -> Result:
    written = plan.write_bytes
    resumed = len(plan.leftover.journal.complete)
    rows = report.rows()
    if resumed or plan.continued_bytes:
        text = f"complete already: {resumed} of {len(plan.layout.all_files)} files"
        parts = f", and {format_bytes(plan.continued_bytes)} of others"
        rows.append(("continued", text + (parts if plan.continued_bytes else "")))
    if shared.dry_run:
        if plan.fetch_bytes:
            rows.append(("to download", format_bytes(plan.fetch_bytes)))
        rows.append(("to write", f"{format_bytes(written)} in {len(plan.files)} files"))
        rows.append(("working memory", f"at most {format_bytes(plan.peak_memory)}"))
    else:
        rate = f"{format_bytes(written / max(seconds, 1e-3))}/s"
        rows.append(("written", f"{format_bytes(written)} in {format_seconds(seconds)}, {rate}"))
    step = checkpoint.steps[-1]["use"]
    dry = " (dry run, nothing written)" if shared.dry_run else ""
    data = {
        "command": step,
        "source": source,
        "commit": checkpoint.origin.commit,
        "destination": str(plan.destination),
        "dry_run": shared.dry_run,
        **report.data(),
        "files_continued": resumed,
        "bytes_continued": plan.continued_bytes,
        "bytes_to_download": plan.fetch_bytes,
        "bytes_written": 0 if shared.dry_run else written,
        "bytes_to_write": written,
        "working_memory_bytes": plan.peak_memory,
        "seconds": round(seconds, 3),
        "warnings": list(checkpoint.warnings),
    }
    return Result(f"{step}: {source} -> {plan.destination}{dry}", rows, report.items(), data)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"ctcli {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Rewrite sharded safetensors checkpoints without loading the model."""


@_command
def reindex(
    source: Source,
    destination: Destination,
    shared: Shared,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            show_default=OFF,
            help="Hard-link shards that do not change, where the file system allows it: no bytes "
            "are copied, but SRC and DST then share them.",
        ),
    ] = False,
) -> None:
    """Put every fused set (q, k, v; gate, up; ...) into one shard.

    Each set goes where most of its bytes already are. Shards that do not change are copied byte
    for byte, and every other file of the checkpoint comes along.
    """
    _rewrite(
        source,
        destination,
        lambda checkpoint: reindex_checkpoint(checkpoint, shared.max_shard_size),
        shared,
        shared.settings(link),
    )


MappingFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default="by model_type",
        help="TOML or JSON that says what embeds, reads and writes, for a model type that is not "
        "known (SpinQuantMapping's and NormMapping's fields).",
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", show_default="cpu", help="Where to compute: cpu, cuda, ..."),
]


@_command
def fuse_norms(
    source: Source,
    destination: Destination,
    shared: Shared,
    center: Annotated[
        bool,
        typer.Option(
            "--center",
            show_default=OFF,
            help="LayerNorm models: take the mean out of what is written into the residual "
            "stream, so that each LayerNorm computes what an RMSNorm would.",
        ),
    ] = False,
    dtype: Annotated[
        Literal["float32"] | None,
        typer.Option(
            show_default="the tensors' own",
            help="Write all floats in this dtype, for a chain without rounding in between.",
        ),
    ] = None,
    mapping: MappingFile = None,
    device: Device = "cpu",
) -> None:
    """Move the gain of every norm into the linears that read it.

    The model computes the same, and its norms have gains of one. Tied embeddings are untied where
    the final norm goes into lm_head.
    """
    from ctcli.rewrites.fuse_norms import fuse_norms as fuse
    from ctcli.rewrites.surgery_options import fuse_options

    options = fuse_options(
        mapping=mapping,
        center=center,
        dtype=dtype,
        device=device,
        max_shard_size=shared.max_shard_size,
    )
    _rewrite(
        source, destination, lambda checkpoint: fuse(checkpoint, options), shared, shared.settings()
    )


def _rotations(text: str) -> str:
    names = [name.strip().upper() for name in text.split(",")]
    if not set(names) <= {"R1", "R2", "R3", "R4"} or len(set(names)) < len(names):
        raise typer.BadParameter(f"{text!r}: give some of R1,R2,R3,R4.")
    return ",".join(sorted(names))


@_command
def rotate(
    source: Source,
    destination: Destination,
    shared: Shared,
    rotations: Annotated[
        str,
        typer.Option(
            parser=_rotations,
            metavar="NAMES",
            show_default="R1,R2",
            help="R1: the residual stream. R2: values. R3, R4: queries and keys, and the MLPs' "
            "inner activations, for servers that rotate these while they run.",
        ),
    ] = "R1,R2",
    transform_type: Annotated[
        TransformType,
        typer.Option(show_default="hadamard", help="Where the matrices come from."),
    ] = "hadamard",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            show_default="compressed-tensors' constant",
            help="Of random signs and matrices.",
        ),
    ] = None,
    randomize: Annotated[
        bool,
        typer.Option(
            "--randomize", show_default=OFF, help="R2: a different matrix for each layer."
        ),
    ] = False,
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default="all together",
            help="R1, R4: rotate blocks of so many coordinates.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            show_default="auto",
            help="Arithmetic; auto is float32 for 16-bit weights, float64 for wider ones.",
        ),
    ] = "auto",
    save_online_weights: Annotated[
        bool,
        typer.Option(
            "--save-online-weights",
            show_default=OFF,
            help="R3: write its matrix too, which vLLM cannot load.",
        ),
    ] = False,
    transform_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="compressed-tensors' TransformConfig as JSON, instead of --rotations. Norms are "
            "not fused.",
        ),
    ] = None,
    rotation_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="Learned matrices as SpinQuant publishes them: R1, <attention>.R2.",
        ),
    ] = None,
    mapping: MappingFile = None,
    device: Device = "cpu",
) -> None:
    """Rotate the weights, so that no coordinate stands out; the model computes the same.

    Norms are fused first. With R1 and R2 the result is an ordinary checkpoint.
    """
    from ctcli.rewrites.rotate import rotate as rotate_checkpoint
    from ctcli.rewrites.surgery_options import rotate_options

    options = rotate_options(
        mapping=mapping,
        rotations=cast(list[RotationName], rotations.split(",")),
        transform_type=transform_type,
        seed=seed,
        randomize=randomize,
        block_size=block_size,
        precision=precision,
        save_online_weights=save_online_weights,
        transform_config=transform_config,
        rotation_file=rotation_file,
        device=device,
        max_shard_size=shared.max_shard_size,
    )
    _rewrite(
        source,
        destination,
        lambda checkpoint: rotate_checkpoint(checkpoint, options),
        shared,
        shared.settings(),
    )


def _block(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise typer.BadParameter(f"{text!r} is no block: give rows and columns, as in 128x128.")
    return int(rows), int(columns)


@_command
def quantize(
    source: Source,
    destination: Destination,
    shared: Shared,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]NAME",
            show_default="none",
            help="Preset such as W4A16, for all linears or for those that PATTERN matches (a name, "
            "or re: and an expression). Repeatable; the first that matches counts.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="compressed-tensors' own JSON (config_groups, ignore), instead of --scheme.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, metavar="BITS", show_default="the scheme's", help="Bits of a weight."
        ),
    ] = None,
    type_: Annotated[
        Literal["int", "float"] | None,
        typer.Option("--type", show_default="the scheme's", help="Integers, or FP8 and FP4."),
    ] = None,
    strategy: Annotated[
        Literal["tensor", "channel", "group", "block", "tensor_group"] | None,
        typer.Option(show_default="the scheme's", help="Which weights share a scale."),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", show_default="the scheme's", help="Columns that share a scale."
        ),
    ] = None,
    block: Annotated[
        tuple[int, int] | None,
        typer.Option(
            parser=_block,
            metavar="ROWSxCOLUMNS",
            show_default="the scheme's",
            help="Tile that shares a scale (128x128).",
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric", show_default="the scheme's", help="Without a zero point?"
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            show_default="what vLLM loads",
            help="Layout on disk: pack-quantized, int-quantized, float-quantized, naive-quantized.",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default="linears",
            help="Module to quantize although it is protected by default (lm_head). Repeatable.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default="embeddings, heads, routers, norms, convolutions, towers, MTP",
            help="Module to leave alone, beside the default ones. Repeatable.",
        ),
    ] = None,
    default_ignore: Annotated[
        bool,
        typer.Option(
            "--default-ignore/--no-default-ignore",
            show_default="on",
            help="Leave the default modules alone.",
        ),
    ] = True,
    on_indivisible: Annotated[
        OnIndivisible,
        typer.Option(
            show_default="error",
            help="What to do with weights whose columns are no multiple of the group size.",
        ),
    ] = "error",
    observer: Annotated[
        Observer,
        typer.Option(
            show_default="minmax",
            help="Range of a group: its extremes, or the shrunk range with the least squared "
            "error (mse, slower).",
        ),
    ] = "minmax",
    compute_dtype: Annotated[
        ComputeDtype,
        typer.Option(
            show_default="float32",
            help="Dtype of weight / scale: float32, as compressed-tensors has it on GPUs, or the "
            "weight's, as on CPUs.",
        ),
    ] = "float32",
    input_scales: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="safetensors file with <module>.input_scale or .input_global_scale for static "
            "schemes, and k_scale and v_scale for an FP8 key-value cache.",
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite", show_default=OFF, help="Let NaN and infinite weights through."
        ),
    ] = False,
    device: Device = "cpu",
) -> None:
    """Quantize linears into a compressed-tensors checkpoint, without a model and without data.

    Embeddings, heads, routers and gates, norms, convolutions, vision and audio towers and
    multi-token-prediction layers are left alone unless --targets names them.
    """
    from ctcli.rewrites.quantize import quantize as quantize_checkpoint  # imports torch

    options = quantize_options(
        schemes=scheme or (),
        config=config,
        overrides=Overrides(bits, type_, strategy, group_size, block, symmetric, format_),
        targets=targets or (),
        ignore=ignore or (),
        default_ignore=default_ignore,
        on_indivisible=on_indivisible,
        observer=observer,
        compute_dtype=compute_dtype,
        input_scales=input_scales,
        allow_nonfinite=allow_nonfinite,
        device=device,
        max_shard_size=shared.max_shard_size,
    )
    _rewrite(
        source,
        destination,
        lambda checkpoint: quantize_checkpoint(checkpoint, options),
        shared,
        shared.settings(),
    )


@_command
def export_bin(
    source: Source,
    destination: BinFile,
    shared: Shared,
    version: Annotated[
        int,
        typer.Option(
            min=0,
            max=2,
            metavar="0|1|2",
            show_default="2",
            help="Format: 0 is float32 for run.c, 1 float32 with a longer header, 2 Q8_0 for "
            "runq.c.",
        ),
    ] = 2,
    group_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default="64, halved until it divides dim and hidden_dim",
            help="Elements that share a scale in version 2.",
        ),
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            metavar="N",
            show_default="max_position_embeddings",
            help="Positions that the reader makes room for in its key-value cache.",
        ),
    ] = None,
    tokenizer: Annotated[
        bool,
        typer.Option(
            "--tokenizer",
            show_default=OFF,
            help="Write tokenizer.bin beside OUT.bin, from tokenizer.model or tokenizer.json.",
        ),
    ] = False,
    allow_nonstandard: Annotated[
        bool,
        typer.Option(
            "--allow-nonstandard",
            show_default=OFF,
            help="Let a RoPE base or a norm's epsilon through that the stock readers do not use.",
        ),
    ] = False,
) -> None:
    """Export a Llama to one .bin file for llama2.c.

    What the format cannot hold (biases, RoPE scaling, other architectures, ...) is refused.
    """
    if shared.max_shard_size:
        raise typer.BadParameter("--max-shard-size is for checkpoints, and OUT.bin is one file.")
    if group_size and version != 2:
        raise typer.BadParameter("--group-size is for --version 2: the others are not quantized.")
    name = destination.resolve().name
    if tokenizer and name == TOKENIZER_NAME:
        raise typer.BadParameter(f"--tokenizer writes {TOKENIZER_NAME}: name OUT.bin otherwise.")
    options = ExportOptions(
        name, cast(Version, version), group_size, max_seq_len, tokenizer, allow_nonstandard
    )
    _rewrite(
        source,
        destination,
        lambda checkpoint: export_checkpoint(checkpoint, options),
        shared,
        shared.settings(),
        lay_out_bin,
    )


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise Stopped(signal_number)


def main() -> None:
    """Run the command line; the only place where expected errors are caught."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except SystemExit as done:
        _leave(int(done.code or 0))
    except CtcliError as error:
        Terminal().fail(error)
        _leave(1)
    except Stopped as stopped:
        # A second signal would only hinder the way out.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Terminal().warn("interrupted; DST is as it was. The same command continues.")
        _leave(stopped.exit_code)


def _leave(exit_code: int) -> NoReturn:
    """End at once: threads may still wait for a hub, and taking torch apart takes a while."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
