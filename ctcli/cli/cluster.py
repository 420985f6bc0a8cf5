"""`--cluster`: the same job on the workers of a Dask cluster."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from functools import partial

from ctcli import __version__
from ctcli.cli.commands import Step
from ctcli.cli.layouts import layout_of
from ctcli.cli.options import Destination, Shared
from ctcli.cli.parts import lacking_files
from ctcli.cli.running import check_options, result_of
from ctcli.cli.worker import check, make
from ctcli.console import Terminal
from ctcli.engine.cluster import Crew, connected
from ctcli.engine.plan import Plan, check_resources
from ctcli.engine.shares import agree, check_destination_of, is_made, plan_share
from ctcli.engine.work import Work
from ctcli.errors import CtcliError
from ctcli.events import Event
from ctcli.options import OptionError
from ctcli.storage.agreement import Agreement
from ctcli.storage.destination import stream_folder_of
from ctcli.storage.gathering import Gathering, attempt_of, give_up, publish
from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import Layout
from ctcli.storage.naming import parse_source
from ctcli.storage.opening import open_checkpoint


def run_cluster(command: str, step: Step, source: str, target: Destination, shared: Shared) -> None:
    """Have the workers of a cluster make the files; then publish DST."""
    terminal = Terminal(shared.quiet, shared.json, shared.log_format == "json")
    with terminal.logging_errors():
        if check_options(terminal, source, target, shared, step.form):
            raise OptionError(
                "--cluster is for a DST on a disk that all workers see, not on a hub."
            )
        attempt = attempt_of(target.path, "client")
        folder = stream_folder_of(attempt) if shared.stream else None
        made, report = step.rewrite(
            open_checkpoint(source, shared.revision, folder, shared.subfolder)
        )
        for warning in made.warnings:
            terminal.warn(warning)
        layout = layout_of(made, target.path)
        settings = shared.settings(step.link, keeps=True)
        agreement = agree(layout, settings, made.origin, step.tables, 0, ["ctcli", *sys.argv[1:]])
        start, is_done = time.monotonic(), is_made(layout, target.path)
        gathering = None if is_done else Gathering(target.path, agreement)
        plan = plan_share(layout, [*agreement.files], attempt, settings, gathering)
        if gathering:
            check_destination_of(layout, target.path, settings)
            check_resources(plan)
        if gathering and not shared.dry_run:
            place = parse_source(source, shared.revision, shared.subfolder)
            work = Work(
                agreement.key,
                place.elsewhere,
                place.revision,
                str(target.path.resolve()),
                step.tables,
                {**asdict(settings), "workers": shared.num_workers or 0},
                shared.stream,
            )
            report = report.with_errors(
                _write(terminal, command, plan, work, gathering, agreement, layout, target, shared)
            )
        seconds = time.monotonic() - start
        result = result_of(command, source, str(target.path), made, report, plan, shared, seconds)
        terminal.show(result)


def _write(
    terminal: Terminal,
    command: str,
    plan: Plan,
    work: Work,
    gathering: Gathering,
    agreement: Agreement,
    layout: Layout,
    target: Destination,
    shared: Shared,
) -> ErrorSums:
    assert shared.cluster, "without one, `run_step` makes all"
    start, nbytes = time.monotonic(), plan.fetch_bytes + plan.write_bytes
    with connected(shared.cluster, shared.num_workers) as client:
        crew = Crew(
            client,
            partial(check, work, agreement.encode()),
            partial(make, work),
            terminal.notify,
            terminal.warn,
        )
        gathering.join(lambda: is_made(layout, target.path))
        try:
            count = crew.gather(__version__)
        except BaseException:
            crew.stop()
            give_up(target.path)
            raise
        terminal.notify(Event("started", nbytes=nbytes, message=command))
        title = f"{command} on {count} workers"
        with terminal.progress(title, nbytes) as advance:
            crew.write(_groups(plan), __version__, advance)
    if missing := lacking_files(layout, target.path, agreement):
        raise CtcliError(
            [f"{name}: it was made, and is not there." for name in missing],
            "Run the same command again, and leave the folder beside DST alone.",
        )
    errors = publish(target.path, agreement)
    terminal.notify(Event("done", nbytes=nbytes, seconds=time.monotonic() - start))
    return errors


def _groups(plan: Plan) -> list[tuple[str, ...]]:
    """Files that one worker makes at once: each shard, and all small files together."""
    found: list[tuple[str, ...]] = [(file.name,) for file in plan.files if file.is_shard]
    others = tuple(file.name for file in plan.files if not file.is_shard)
    return [*found, others] if others else found
