"""`--part I/N`: one machine's share of a checkpoint that several make."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ctcli.cli.commands import Step
from ctcli.cli.layouts import layout_of
from ctcli.cli.options import Destination, Shared
from ctcli.cli.running import check_options, prepare, result_of
from ctcli.console import Result, Terminal
from ctcli.engine.plan import Plan, check_resources
from ctcli.engine.shares import agree, check_destination_of, is_made, plan_share, write_share
from ctcli.events import Event
from ctcli.options import OptionError
from ctcli.storage.agreement import Agreement
from ctcli.storage.destination import stream_folder_of
from ctcli.storage.gathering import Gathering, attempt_of, missing_files, publish
from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import Layout
from ctcli.storage.opening import open_checkpoint
from ctcli.storage.writer import BusyError

_TRIES = 5


def run_part(command: str, step: Step, source: str, target: Destination, shared: Shared) -> None:
    """Make a share of the files; then publish DST, if all others are there."""
    terminal = Terminal(shared.quiet, shared.json, shared.log_format == "json")
    with terminal.logging_errors():
        for left in reversed(range(_TRIES)):
            try:
                _run_part(terminal, command, step, source, target, shared)
                return
            except BusyError:  # the same part was begun here at the same moment
                if not left:
                    raise


def _run_part(
    terminal: Terminal, command: str, step: Step, source: str, target: Destination, shared: Shared
) -> None:
    part = shared.part
    assert part, "without one, `run_step` makes all"
    if check_options(terminal, source, target, shared, step.form):
        raise OptionError("--part is for a DST on a disk that all machines see, not on a hub.")
    attempt = attempt_of(target.path, part.label)
    folder = stream_folder_of(attempt) if shared.stream else None
    made, report = step.rewrite(open_checkpoint(source, shared.revision, folder, shared.subfolder))
    for warning in made.warnings:
        terminal.warn(warning)
    layout = layout_of(made, target.path)
    settings = shared.settings(step.link, keeps=True)
    agreement = agree(layout, settings, made.origin, step.tables, part.count, _own_words())
    names = [name for name, (_, number) in agreement.files.items() if number == part.number]
    gathering = Gathering(target.path, agreement)
    start, is_done = time.monotonic(), is_made(layout, target.path)
    plan = plan_share(layout, names, attempt, settings, None if is_done else gathering)
    missing = lacking_files(layout, target.path, agreement)
    if not is_done:
        check_destination_of(layout, target.path, settings)
        check_resources(plan)
    if not shared.dry_run:
        errors: ErrorSums = {}
        if not is_done:
            prepare(terminal, made)
            errors = _write(terminal, f"{command} {part}", plan, gathering, layout, target)
        if not (missing := lacking_files(layout, target.path, agreement)):
            errors = publish(target.path, agreement) or errors
        report = report.with_errors(errors)
    seconds = time.monotonic() - start
    result = result_of(command, source, str(target.path), made, report, plan, shared, seconds)
    terminal.show(_with_part(result, shared, names, missing, agreement))


def _write(
    terminal: Terminal,
    title: str,
    plan: Plan,
    gathering: Gathering,
    layout: Layout,
    target: Destination,
) -> ErrorSums:
    start, nbytes = time.monotonic(), plan.fetch_bytes + plan.write_bytes
    terminal.notify(Event("started", nbytes=nbytes, message=title))
    with terminal.progress(title, nbytes) as advance:
        errors = write_share(plan, gathering, layout, target.path, advance, terminal.notify)
    terminal.notify(Event("done", nbytes=nbytes, seconds=time.monotonic() - start, message=title))
    return errors


def _with_part(
    result: Result, shared: Shared, names: Sequence[str], missing: Sequence[str], made: Agreement
) -> Result:
    """A result that also tells of the part, and of those that are missing."""
    part = shared.part
    assert part, "without one, `run_step` makes all"
    lacking = lacking_parts(missing, made)
    rows = [*result.rows, ("part", f"{part}: {len(names)} of {len(made.files)} files")]
    if not lacking:
        rows.append(("parts", "complete; DST is published"))
    elif not shared.dry_run:
        rows.append(("parts missing", f"{len(lacking)} of {part.count}, such as {lacking[0]}"))
    data = {
        **result.data,
        "part": part.number,
        "parts": part.count,
        "files": list(names),
        "published": not lacking,
        "parts_missing": lacking,
    }
    return replace(result, rows=rows, data=data)


def lacking_files(layout: Layout, destination: Path, made: Agreement) -> list[str]:
    """The files that nobody has completed yet; none once DST is what the layout makes of it."""
    return [] if is_made(layout, destination) else missing_files(destination, made)


def lacking_parts(missing: Sequence[str], made: Agreement) -> list[str]:
    """The parts, as `--part` takes them, that are to make these files."""
    numbers = sorted({made.files[name][1] for name in missing})
    return [f"{number}/{made.parts}" for number in numbers]


def _own_words() -> list[str]:
    """The words of this command, but for its part."""
    words, found = iter(["ctcli", *sys.argv[1:]]), []
    for word in words:
        if word == "--part":
            next(words, None)
        elif not word.startswith("--part="):
            found.append(word)
    return found


def command_of(made: Agreement, part: str) -> str:
    """The command that makes a part."""
    return shlex.join([*made.command, "--part", part])
