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
from typing import Annotated, Any, NoReturn, get_type_hints

import typer

from ctcli import __version__
from ctcli.checkpoint import Checkpoint
from ctcli.console import Report, Result, Terminal
from ctcli.engine import execute
from ctcli.errors import CtcliError, Stopped
from ctcli.plan import Plan, Settings, check_resources, make_plan
from ctcli.rewrites.reindex import reindex as reindex_checkpoint
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import local_directory, open_checkpoint
from ctcli.storage.writer import check_destination
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


Source = Annotated[
    str, typer.Argument(metavar="SRC", help="Checkpoint: a local directory or a hub id (org/name).")
]
Destination = Annotated[
    Path,
    typer.Argument(metavar="DST", help="Directory to make; it must not exist yet, or be empty."),
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
) -> None:
    """Open, rewrite, plan, check; then, unless it is a dry run, write."""
    terminal = Terminal(shared.quiet, shared.json)
    directory = local_directory(source)
    if directory and shared.revision:
        raise typer.BadParameter("--revision is for hub ids, and SRC is a directory.")
    check_destination(destination, directory, shared.overwrite)
    checkpoint, report = rewrite(open_checkpoint(source, shared.revision))
    for warning in checkpoint.warnings:
        terminal.warn(warning)
    plan = make_plan(lay_out(checkpoint), destination, settings)
    check_resources(plan)
    start = time.monotonic()
    if not shared.dry_run:
        step = checkpoint.steps[-1]["use"]
        with terminal.progress(step, plan.fetch_bytes + plan.write_bytes) as advance:
            execute(plan, advance)
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
    resumed = len(plan.leftover.complete)
    rows = report.rows()
    if resumed:
        rows.append(("continued", f"{resumed} files were complete already"))
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


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise Stopped(signal_number)


def main() -> None:
    """Run the command line; the only place where expected errors are caught."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except CtcliError as error:
        Terminal().fail(error)
        sys.exit(1)
    except Stopped as stopped:
        Terminal().warn("interrupted; DST is as it was. The same command continues.")
        sys.exit(stopped.exit_code)
