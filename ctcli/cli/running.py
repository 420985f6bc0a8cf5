"""What every command does with its steps: open, rewrite, check, plan, write, show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ctcli.checkpoint.value import Checkpoint, Preparation
from ctcli.cli.commands import Made, Step
from ctcli.cli.layouts import layout_of
from ctcli.cli.next_steps import next_steps
from ctcli.cli.options import Destination, Shared, source_directory
from ctcli.cli.pushing import begin_push, check_push, repository, with_push
from ctcli.console import Report, Result, Terminal
from ctcli.engine.plan import Plan, check_resources, make_plan
from ctcli.engine.run import execute
from ctcli.errors import CtcliError
from ctcli.events import Event
from ctcli.options import OptionError
from ctcli.storage.destination import (
    Form,
    check_destination,
    check_place,
    partial_of,
    stream_folder_of,
)
from ctcli.storage.hub.kinds import publishable
from ctcli.storage.journal import ErrorSums
from ctcli.storage.leftover import check_partial, is_aside, is_published, refuse_gathering
from ctcli.storage.opening import open_checkpoint
from ctcli.storage.writer import put_back
from ctcli.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    from ctcli.storage.hub.publication import Publication


def run_step(command: str, step: Step, source: str, target: Destination, shared: Shared) -> None:
    """Open, rewrite, plan, check; then, unless it is a dry run, write and publish."""
    terminal = Terminal(shared.quiet, shared.json, shared.log_format == "json")
    with terminal.logging_errors():
        repo = check_options(terminal, source, target, shared, step.form)
        refuse_gathering(target.path)
        folder = stream_folder_of(target.path) if shared.stream else None
        opened = open_checkpoint(source, shared.revision, folder, shared.subfolder)
        made, report = step.rewrite(opened)
        if repo:
            assert isinstance(made, Checkpoint), "what a hub does not take was refused"
            made = publishable(made, shared.include)
        for warning in made.warnings:
            terminal.warn(warning)
        layout = layout_of(made, target.path)
        plan = make_plan(layout, target.path, shared.settings(step.link, target.repo is None))
        if nbytes := plan.leftover.foreign:
            name = partial_of(target.path).name
            what = f"{format_bytes(nbytes)} that a run with another plan left for this DST"
            terminal.warn(f"{name}: {what} cannot be continued, and will be deleted.")
        lacking = _lacking(plan, made, shared.dry_run)
        start, publication = time.monotonic(), None
        if shared.dry_run:
            if repo:
                check_push(repo, plan, shared)
        else:
            if repo:
                assert isinstance(made, Checkpoint), "what a hub does not take was refused"
                publication, plan = begin_push(repo, made, plan, shared)
            prepare(terminal, made, plan)
            report = report.with_errors(_execute(terminal, command, plan, publication))
        seconds = time.monotonic() - start
        compiled = terminal.has_compiled
        result = result_of(command, source, target, made, report, plan, shared, seconds, compiled)
        if repo:
            commit = publication.commit if publication else None
            result = with_push(result, repo, shared.branch, commit)
        terminal.show(result)
        if lacking:
            raise lacking


def _lacking(plan: Plan, made: Made, dry_run: bool) -> CtcliError | None:
    """Refuse a plan that does not fit here; of a dry run, once the plan has been shown."""
    try:
        check_resources(plan, preparations_of(made))
    except CtcliError as error:
        if not dry_run:
            raise
        return error
    return None


def check_options(
    terminal: Terminal, source: str, target: Destination, shared: Shared, form: Form
) -> str | None:
    """Refuse what does not go together; returns the repository to publish on, if there is one."""
    directory = source_directory(source, shared.revision)
    if directory and shared.stream:
        raise OptionError("--stream is for hub ids, and SRC is a directory.")
    if shared.max_disk and not (shared.stream or target.repo):
        raise OptionError("--max-disk goes with --stream, or with a DST hf://ORG/NAME.")
    check_place(target.path, directory)
    if check_partial(target.path):
        _put_back(terminal, target.path, shared.dry_run)
    published: Callable[[], bool] = partial(is_published, target.path, form)
    if shared.part or shared.cluster:
        # Whether DST is what they make can be told only once it is planned.
        published = target.path.exists
    check_destination(target.path, shared.overwrite, form, published)
    return repository(target, shared, form)


def _put_back(terminal: Terminal, destination: Path, dry_run: bool) -> None:
    """Put DST back, and say so, if a run died when it had moved it."""
    if is_aside(destination) if dry_run else put_back(destination):
        done = "would be put back first" if dry_run else "was put back"
        terminal.warn(
            f"{destination}: a run that was to replace it died when it was out of the way; it "
            f"{done}."
        )


def preparations_of(made: Made) -> Iterable[Preparation]:
    """What a run of it begins with, such as learning."""
    return made.preparations if isinstance(made, Checkpoint) else ()


def prepare(terminal: Terminal, made: Made, plan: Plan) -> None:
    """Do what a run of it begins with, if there are shards to be written."""
    for each in preparations_of(made) if any(file.is_shard for file in plan.files) else ():
        with terminal.progress(each.title, each.nbytes) as advance:
            each.run(advance)


def _execute(
    terminal: Terminal, command: str, plan: Plan, publication: Publication | None
) -> ErrorSums:
    start, nbytes = time.monotonic(), plan.fetch_bytes + plan.write_bytes
    if publication:
        nbytes += sum(f.size for f in plan.layout.files if f.is_shard)
        nbytes -= sum(file.size for file in publication.pushed.values())
    terminal.notify(Event("started", nbytes=nbytes, message=command))
    shards = sum(file.is_shard for file in plan.files)
    with terminal.progress(command, nbytes, shards) as advance:
        errors = execute(plan, advance, publication, terminal.notify)
    terminal.notify(Event("done", nbytes=nbytes, seconds=time.monotonic() - start))
    return errors


def result_of(
    command: str,
    source: str,
    target: Destination,
    made: Made,
    report: Report,
    plan: Plan,
    shared: Shared,
    seconds: float,
    has_compiled: bool = False,
) -> Result:
    """What a run has to say at its end."""
    place = str(target)
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
        rows.append(("to write", f"{format_bytes(written)} in {counted(len(plan.files), 'file')}"))
        rows.append(("working memory", f"at most {format_bytes(plan.peak_memory)}"))
    else:
        rate = f"{format_bytes(written / max(seconds, 1e-3))}/s"
        if has_compiled:
            rate = "compiling kernels, once, included"
        rows.append(("written", f"{format_bytes(written)} in {format_seconds(seconds)}, {rate}"))
    dry = " (dry run, nothing written)" if shared.dry_run else ""
    data = {
        "command": command,
        "source": source,
        "commit": made.origin.commit,
        "destination": place,
        "dry_run": shared.dry_run,
        **report.data(),
        "files_continued": resumed,
        "bytes_continued": plan.continued_bytes,
        "bytes_to_download": plan.fetch_bytes,
        "bytes_written": 0 if shared.dry_run else written,
        "bytes_to_write": written,
        "working_memory_bytes": plan.peak_memory,
        "seconds": round(seconds, 3),
        "warnings": list(made.warnings),
    }
    sections = [] if shared.dry_run else next_steps(command, source, place, made)
    return Result(f"{command}: {source} -> {place}{dry}", rows, report.items(), data, sections)
