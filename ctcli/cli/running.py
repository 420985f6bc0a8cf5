"""What every command does with its steps: open, rewrite, check, plan, write, show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from ctcli.checkpoint import Checkpoint
from ctcli.cli.options import Shared, source_directory
from ctcli.console import Report, Result, Terminal
from ctcli.engine import execute
from ctcli.plan import Plan, check_resources, make_plan
from ctcli.storage.destination import check_destination, stream_folder_of
from ctcli.storage.layout import lay_out
from ctcli.storage.llama2c import lay_out_bin
from ctcli.storage.opening import open_checkpoint
from ctcli.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Step:
    """A rewrite with its options.

    Attributes:
        rewrite: what it does.
        is_file: whether it makes a .bin file, after which there is no checkpoint to go on with.
        link: whether shards that do not change become links.
    """

    rewrite: Callable[[Checkpoint], tuple[Checkpoint, Report]]
    is_file: bool = False
    link: bool = False


def run_step(command: str, step: Step, source: str, destination: Path, shared: Shared) -> None:
    """Open, rewrite, plan, check; then, unless it is a dry run, write."""
    terminal = Terminal(shared.quiet, shared.json)
    directory = source_directory(source, shared.revision)
    if directory and shared.stream:
        raise typer.BadParameter("--stream is for hub ids, and SRC is a directory.")
    if shared.max_disk and not shared.stream:
        raise typer.BadParameter("--max-disk goes with --stream.")
    check_destination(destination, directory, shared.overwrite, step.is_file)
    folder = stream_folder_of(destination) if shared.stream else None
    checkpoint, report = step.rewrite(open_checkpoint(source, shared.revision, folder))
    for warning in checkpoint.warnings:
        terminal.warn(warning)
    name = destination.resolve().name
    layout = lay_out_bin(checkpoint, name) if step.is_file else lay_out(checkpoint)
    plan = make_plan(layout, destination, shared.settings(step.link))
    check_resources(plan)
    start = time.monotonic()
    if not shared.dry_run:
        with terminal.progress(command, plan.fetch_bytes + plan.write_bytes) as advance:
            report = report.with_errors(execute(plan, advance))
    seconds = time.monotonic() - start
    terminal.show(_result(command, source, checkpoint, report, plan, shared, seconds))


def _result(
    command: str,
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
    dry = " (dry run, nothing written)" if shared.dry_run else ""
    data = {
        "command": command,
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
    return Result(f"{command}: {source} -> {plan.destination}{dry}", rows, report.items(), data)
