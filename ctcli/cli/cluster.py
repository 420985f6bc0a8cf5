"""`--cluster`: the same job on the workers of a Dask cluster."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ctcli import __version__
from ctcli.cli.commands import Step
from ctcli.cli.layouts import layout_of
from ctcli.cli.meetings import attempt_at, check_shared, folder_of, for_target, meeting_of
from ctcli.cli.options import Destination, Shared
from ctcli.cli.parts import bytes_to_move, own_words
from ctcli.cli.pushing import with_push
from ctcli.cli.running import preparations_of, result_of
from ctcli.cli.worker import Planned, check, make, plan_of
from ctcli.console import Terminal
from ctcli.engine.cluster import Crew, check_installed, connected
from ctcli.engine.plan import Plan, Settings, check_budget, check_resources
from ctcli.engine.shares import Meeting, agree, check_destination_of, plan_share
from ctcli.engine.work import Work
from ctcli.errors import CtcliError
from ctcli.events import Event
from ctcli.storage.agreement import Agreement
from ctcli.storage.destination import stream_folder_of
from ctcli.storage.journal import ErrorSums
from ctcli.storage.naming import parse_source
from ctcli.storage.opening import open_checkpoint


def run_cluster(command: str, step: Step, source: str, target: Destination, shared: Shared) -> None:
    """Have the workers of a cluster make the files; then publish DST."""
    terminal = Terminal(shared.quiet, shared.json, shared.log_format == "json")
    with terminal.logging_errors():
        check_installed()
        check_shared(terminal, source, target, shared, step.form)
        attempt = attempt_at(target, "client")
        folder = stream_folder_of(attempt) if shared.stream else None
        made, report = step.rewrite(
            open_checkpoint(source, shared.revision, folder, shared.subfolder)
        )
        made = for_target(made, target, shared.include)
        for warning in made.warnings:
            terminal.warn(warning)
        layout = layout_of(made, target.path)
        settings = shared.settings(step.link, keeps=target.repo is None)
        agreement = agree(layout, settings, made.origin, step.tables, 0, own_words())
        meeting = meeting_of(target, shared, made, layout, agreement)
        start, is_done = time.monotonic(), meeting.is_made()
        plan = plan_share(
            layout, [*agreement.files], attempt, settings, None if is_done else meeting
        )
        if target.repo and not is_done:
            check_budget(plan, preparations_of(made))
        elif not is_done:
            check_destination_of(layout, target.path, settings)
            check_resources(plan, preparations_of(made))
        if not (is_done or shared.dry_run):
            work = _work(source, target, shared, step, settings, agreement.key)
            if not (work.stream or work.repo):
                place = folder_of(Path(work.destination), layout, agreement)
                plan_of.keep(work, Planned(layout, agreement, place, preparations_of(made)))
            report = report.with_errors(
                _write(terminal, command, plan, work, meeting, agreement, shared)
            )
        seconds = time.monotonic() - start
        result = result_of(command, source, target, made, report, plan, shared, seconds)
        if target.repo:
            result = with_push(result, target.repo, shared.branch, meeting.commit)
        terminal.show(result)


def _work(
    source: str, target: Destination, shared: Shared, step: Step, settings: Settings, key: str
) -> Work:
    """What the workers are told."""
    place = parse_source(source, shared.revision, shared.subfolder)
    return Work(
        key,
        place.elsewhere,
        place.revision,
        str(target.path) if target.repo else str(target.path.resolve()),
        step.tables,
        {**asdict(settings), "workers": shared.num_workers or 0},
        shared.stream,
        target.repo,
        shared.branch,
        shared.include,
    )


def _write(
    terminal: Terminal,
    command: str,
    plan: Plan,
    work: Work,
    meeting: Meeting,
    agreement: Agreement,
    shared: Shared,
) -> ErrorSums:
    assert shared.cluster, "without one, `run_step` makes all"
    start, nbytes = time.monotonic(), bytes_to_move(plan)
    with connected(shared.cluster, shared.num_workers) as client:
        crew = Crew(
            client,
            partial(check, work, agreement.encode()),
            partial(make, work),
            terminal.notify,
            terminal.warn,
        )
        meeting.join()
        try:
            count = crew.gather(__version__)
        except BaseException:
            meeting.give_up()
            raise
        terminal.notify(Event("started", nbytes=nbytes, message=command))
        title = f"{command} on {count} workers"
        with terminal.progress(title, nbytes) as advance:
            crew.write(_groups(plan), __version__, advance)
    if missing := meeting.missing():
        raise CtcliError(
            [f"{name}: it was made, and is not there." for name in missing],
            "Run the same command again, and leave the place where the files meet alone.",
        )
    errors = meeting.publish()
    terminal.notify(Event("done", nbytes=nbytes, seconds=time.monotonic() - start))
    return errors


def _groups(plan: Plan) -> list[tuple[str, ...]]:
    """Files that one worker makes at once: each shard, and all small files together."""
    found: list[tuple[str, ...]] = [(file.name,) for file in plan.files if file.is_shard]
    others = tuple(file.name for file in plan.files if not file.is_shard)
    return [*found, others] if others else found
