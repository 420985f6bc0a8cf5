"""`--part I/N`: one machine's share of a checkpoint that several make."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from ctcli.cli.commands import Step
from ctcli.cli.layouts import layout_of
from ctcli.cli.meetings import attempt_at, check_shared, for_target, meeting_of
from ctcli.cli.options import Destination, Shared
from ctcli.cli.pushing import with_push
from ctcli.cli.running import preparations_of, prepare, result_of
from ctcli.console import Result, ResultSection, Terminal
from ctcli.engine.plan import Plan, check_resources
from ctcli.engine.shares import Meeting, agree, check_destination_of, plan_share, write_share
from ctcli.events import Event
from ctcli.redaction import redact
from ctcli.storage.agreement import Agreement
from ctcli.storage.destination import stream_folder_of
from ctcli.storage.journal import ErrorSums
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
    check_shared(terminal, source, target, shared, step.form)
    attempt = attempt_at(target, part.label)
    folder = stream_folder_of(attempt) if shared.stream else None
    made, report = step.rewrite(open_checkpoint(source, shared.revision, folder, shared.subfolder))
    made = for_target(made, target, shared.include)
    for warning in made.warnings:
        terminal.warn(warning)
    layout = layout_of(made, target.path)
    settings = shared.settings(step.link, keeps=target.repo is None)
    agreement = agree(layout, settings, made.origin, step.tables, part.count, own_words())
    names = [name for name, (_, number) in agreement.files.items() if number == part.number]
    meeting = meeting_of(target, shared, made, layout, agreement)
    start, is_done = time.monotonic(), meeting.is_made()
    plan = plan_share(layout, names, attempt, settings, None if is_done else meeting)
    missing = meeting.missing()
    if not is_done:
        if not target.repo:
            check_destination_of(layout, target.path, settings)
        check_resources(plan, preparations_of(made))
    if not shared.dry_run:
        errors: ErrorSums = {}
        if not is_done:
            prepare(terminal, made, plan)
            errors = _write(terminal, f"{command} {part}", plan, meeting)
        if not (missing := meeting.missing()):
            errors = meeting.publish() or errors
        report = report.with_errors(errors)
    seconds = time.monotonic() - start
    result = result_of(command, source, target, made, report, plan, shared, seconds)
    if target.repo:
        result = with_push(result, target.repo, shared.branch, meeting.commit)
    terminal.show(_with_part(result, shared, names, missing, agreement))


def _write(terminal: Terminal, title: str, plan: Plan, meeting: Meeting) -> ErrorSums:
    start, nbytes = time.monotonic(), bytes_to_move(plan)
    terminal.notify(Event("started", nbytes=nbytes, message=title))
    with terminal.progress(title, nbytes) as advance:
        errors = write_share(plan, meeting, advance, terminal.notify)
    terminal.notify(Event("done", nbytes=nbytes, seconds=time.monotonic() - start, message=title))
    return errors


def bytes_to_move(plan: Plan) -> int:
    """Bytes of which progress is told: downloaded, written, and uploaded if DST is on a hub."""
    uploaded = 0 if plan.settings.keeps else sum(file.size for file in plan.files)
    return plan.fetch_bytes + plan.write_bytes + uploaded


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
    sections = result.sections
    if lacking and not shared.dry_run:
        todo = [(command_of(made, each),) for each in lacking]
        sections = [*(s for s in sections if s.heading != "next"), ResultSection("next", todo)]
    return replace(result, rows=rows, data=data, sections=sections)


def lacking_parts(missing: Sequence[str], made: Agreement) -> list[str]:
    """The parts, as `--part` takes them, that are to make these files."""
    numbers = sorted({made.files[name][1] for name in missing})
    return [f"{number}/{made.parts}" for number in numbers]


def own_words() -> list[str]:
    """The words of this command, but for its part, and without secrets."""
    words, found = iter(["ctcli", *sys.argv[1:]]), []
    for word in words:
        if word == "--part":
            next(words, None)
        elif not word.startswith("--part="):
            found.append(redact(word))
    return found


def command_of(made: Agreement, part: str) -> str:
    """The command that makes a part."""
    return shlex.join([*made.command, "--part", part])
