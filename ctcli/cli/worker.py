"""What a worker of a cluster does: the same plan, made once, and the files that it is given."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from ctcli.cli.layouts import layout_of
from ctcli.cli.meetings import attempt_at, folder_of, for_target
from ctcli.cli.options import Destination
from ctcli.cli.run import chain
from ctcli.engine.plan import Settings
from ctcli.engine.shares import Meeting, agree, plan_share, write_share
from ctcli.engine.work import Failure, Work
from ctcli.errors import CtcliError
from ctcli.events import Event
from ctcli.ops.runtime import limit_blas, reuse_memory
from ctcli.storage.agreement import HINT, Agreement
from ctcli.storage.destination import stream_folder_of
from ctcli.storage.layout import Layout
from ctcli.storage.opening import open_checkpoint

_BEAT_SECONDS = 0.5
# Beside what jobs hold: the interpreter, its packages, and a plan.
_OWN_BYTES = 500_000_000
_ENOUGH = 0.9  # of its limit, a worker's nanny lets it use: at 95 % the worker is killed


@dataclass(frozen=True)
class _Made:
    """A plan as this process has made it, and where the files of all workers meet."""

    layout: Layout
    agreement: Agreement
    settings: Settings
    meeting: Meeting


_made: dict[str, _Made] = {}  # the last one, by what it was asked for
_lock = threading.Lock()


class EndedError(CtcliError):
    """Nobody waits for the task any more."""

    def __init__(self) -> None:
        super().__init__("the job has ended.", "Run the same command again.")


def check(work: Work, expected: bytes, task: str, topic: str) -> Failure | None:
    """See whether this worker can do its share: same SRC, same DST, room in memory.

    Args:
        work: the plan.
        expected: the agreement of the process that asks.
        task: names this call in what is told.
        topic: where it is told that this worker is alive.
    """
    problems: list[str] = []
    hints: list[str] = []
    with _telling(task, topic):
        for look in (_check_memory, lambda work: _check_plan(work, expected), _check_writing):
            try:
                look(work)
            except CtcliError as error:
                failure = Failure.of(error)
                problems += failure.problems
                hints.append(failure.hint)
    return Failure(tuple(problems), " ".join(dict.fromkeys(hints))) if problems else None


def make(work: Work, names: Sequence[str], task: str, topic: str) -> Failure | None:
    """Make files of the plan, unless they are complete.

    Args:
        work: the plan.
        names: the files.
        task: names this call in what is told.
        topic: where progress is told.
    """
    with _telling(task, topic) as teller:
        try:
            made = _plan(work)
            if made.agreement.key != work.key:
                raise CtcliError("SRC has changed since this worker was checked.", HINT)
            label = sha256("\0".join(names).encode()).hexdigest()[:16]
            plan = plan_share(
                made.layout, names, attempt_at(_target(work), label), made.settings, made.meeting
            )
            if plan.files:
                write_share(plan, made.meeting, teller.advance, teller.notify)
        except CtcliError as error:
            return Failure.of(error)
    return None


def _plan(work: Work) -> _Made:
    """The plan, made unless the last one was the same."""
    with _lock:
        if repr(work) not in _made:
            _made.clear()
            limit_blas()
            reuse_memory()
            made = _make_plan(work)
            if made.agreement.key != work.key:
                return made
            _made[repr(work)] = made
        return _made[repr(work)]


def _make_plan(work: Work) -> _Made:
    target, folder = _target(work), None
    if work.stream:
        # No two processes stream through the same folder.
        folder = stream_folder_of(attempt_at(target, f"stream-{uuid4().hex}"))
    step = chain(work.tables)
    made, _ = step.rewrite(open_checkpoint(work.source, work.revision, folder))
    made = for_target(made, target, work.include)
    layout = layout_of(made, target.path)
    settings = Settings(**work.settings)
    if not settings.workers:
        settings = Settings(**{**work.settings, "workers": _worker().state.nthreads})
    agreement = agree(layout, settings, made.origin, work.tables, 0, ())
    return _Made(layout, agreement, settings, _meeting(work, layout, agreement))


def _target(work: Work) -> Destination:
    """DST; of one on a hub, where it grows is a folder that goes with this process."""
    path = Path(work.destination)
    return Destination(Path(_worker().local_directory) / path if work.repo else path, work.repo)


def _meeting(work: Work, layout: Layout, agreement: Agreement) -> Meeting:
    if work.repo is None:
        return folder_of(Path(work.destination), layout, agreement)
    from ctcli.storage.hub.gathering import HubGathering
    from ctcli.storage.hub.target import PushTarget

    overwrite = agreement.settings["overwrite"]
    return HubGathering(PushTarget(work.repo, work.branch, overwrite=overwrite), agreement)


def _check_memory(work: Work) -> None:
    limit = _worker().memory_manager.memory_limit
    need = work.settings["max_memory"] + _OWN_BYTES
    if limit and limit * _ENOUGH < need:
        raise CtcliError(
            f"it may use {limit:,} bytes of memory, and needs {need / _ENOUGH:,.0f}.",
            "Start workers with --memory-limit 0 or a larger one, or give a smaller --max-memory.",
        )


def _check_plan(work: Work, expected: bytes) -> None:
    there = Agreement.decode(expected)
    if differences := there.differences(_plan(work).agreement):
        raise CtcliError([f"its plan is another one: {each}" for each in differences], HINT)


def _check_writing(work: Work) -> None:
    _plan(work).meeting.check_writing()


class _Teller:
    """Tells the process that waits for a task what happens, and ends it if there is none."""

    def __init__(self, task: str, topic: str) -> None:
        self._task, self._topic = task, topic
        self._worker = _worker()
        self._key = self._worker.get_current_task()
        self._lock = threading.Lock()
        self._nbytes = 0

    def advance(self, nbytes: int) -> None:
        """Note progress, from any thread."""
        if not self.is_wanted:
            raise EndedError
        with self._lock:
            self._nbytes += nbytes

    def notify(self, event: Event) -> None:
        """Tell of an event, from any thread."""
        told = {"event": event.kind, "name": event.name, "nbytes": event.nbytes}
        self._worker.log_event(self._topic, {"task": self._task, **told})

    def beat(self) -> None:
        """Tell how many bytes there were since the last time, and that this worker lives."""
        with self._lock:
            nbytes, self._nbytes = self._nbytes, 0
        self._worker.log_event(self._topic, {"task": self._task, "advance": nbytes})

    @property
    def is_wanted(self) -> bool:
        """Whether the scheduler is there, and has not been told to forget the task."""
        task = self._worker.state.tasks.get(self._key)
        is_here = self._worker.status.name in ("running", "paused")
        return is_here and task is not None and task.state in ("executing", "long-running")


@contextmanager
def _telling(task: str, topic: str) -> Iterator[_Teller]:
    """Within the block, the process that waits hears of this worker again and again."""
    teller, over = _Teller(task, topic), threading.Event()

    def beat() -> None:
        while not over.wait(_BEAT_SECONDS):
            teller.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield teller
    finally:
        over.set()
        thread.join()
        teller.beat()


def _worker() -> Any:
    from distributed import get_worker

    return get_worker()
