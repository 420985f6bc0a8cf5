"""What a worker of a cluster does: the same plan, made once, and the files that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from ctcli.checkpoint.value import Preparation
from ctcli.cli.layouts import layout_of
from ctcli.cli.meetings import attempt_at, folder_of, for_target
from ctcli.cli.options import Destination
from ctcli.cli.run import chain
from ctcli.cli.running import preparations_of
from ctcli.cli.telling import Kept, check_memory, first_look, telling, this_worker
from ctcli.engine.plan import Settings
from ctcli.engine.shares import Meeting, agree, plan_share, write_share
from ctcli.engine.work import Failure, Work
from ctcli.errors import CtcliError
from ctcli.storage.agreement import HINT, Agreement
from ctcli.storage.destination import stream_folder_of
from ctcli.storage.layout import Layout
from ctcli.storage.opening import open_checkpoint


@dataclass(frozen=True)
class Planned:
    """A plan as this process has made it, and where the files of all workers meet."""

    layout: Layout
    agreement: Agreement
    meeting: Meeting
    preparations: Iterable[Preparation]


def check(work: Work, expected: bytes, task: str, topic: str) -> Failure | None:
    """See whether this worker can do its share: same SRC, same DST, room in memory.

    Args:
        work: the plan.
        expected: the agreement of the process that asks.
        task: names this call in what is told.
        topic: where it is told that this worker is alive.
    """
    with telling(task, topic):
        return first_look(
            partial(check_memory, work.settings["max_memory"]),
            partial(_check_plan, work, expected),
            partial(_check_writing, work),
        )


def make(work: Work, names: Sequence[str], task: str, topic: str) -> Failure | None:
    """Make files of the plan, unless they are complete.

    Args:
        work: the plan.
        names: the files.
        task: names this call in what is told.
        topic: where progress is told.
    """
    with telling(task, topic) as teller:
        try:
            made = plan_of(work)
            if made.agreement.key != work.key:
                raise CtcliError("SRC has changed since this worker was checked.", HINT)
            label = sha256("\0".join(names).encode()).hexdigest()[:16]
            threads = work.settings["workers"] or this_worker().state.nthreads
            settings = Settings(**{**work.settings, "workers": threads})
            attempt = attempt_at(_target(work), label)
            plan = plan_share(made.layout, names, attempt, settings, made.meeting)
            if any(file.is_shard for file in plan.files):
                for each in made.preparations:
                    teller.prepare(each)
            if plan.files:
                write_share(plan, made.meeting, teller.advance, teller.notify)
        except CtcliError as error:
            return Failure.of(error)
    return None


def _make_plan(work: Work) -> Planned:
    target, folder = _target(work), None
    if work.stream:
        # No two processes stream through the same folder.
        folder = stream_folder_of(attempt_at(target, f"stream-{uuid4().hex}"))
    step = chain(work.tables)
    made, _ = step.rewrite(open_checkpoint(work.source, work.revision, folder))
    made = for_target(made, target, work.include)
    layout = layout_of(made, target.path)
    agreement = agree(layout, Settings(**work.settings), made.origin, work.tables, 0, ())
    meeting = _meeting(work, layout, agreement)
    return Planned(layout, agreement, meeting, preparations_of(made))


def _target(work: Work) -> Destination:
    """DST; of one on a hub, where it grows is a folder that goes with this process."""
    path = Path(work.destination)
    return Destination(Path(this_worker().local_directory) / path if work.repo else path, work.repo)


def _meeting(work: Work, layout: Layout, agreement: Agreement) -> Meeting:
    if work.repo is None:
        return folder_of(Path(work.destination), layout, agreement)
    from ctcli.storage.hub.gathering import HubGathering
    from ctcli.storage.hub.target import PushTarget

    overwrite = agreement.settings["overwrite"]
    return HubGathering(PushTarget(work.repo, work.branch, overwrite=overwrite), agreement)


def _check_plan(work: Work, expected: bytes) -> None:
    there = Agreement.decode(expected)
    if differences := there.differences(plan_of(work).agreement):
        raise CtcliError([f"its plan is another one: {each}" for each in differences], HINT)


def _check_writing(work: Work) -> None:
    plan_of(work).meeting.check_writing()


plan_of = Kept(_make_plan, lambda work, made: made.agreement.key == work.key)
