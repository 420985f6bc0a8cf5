"""What a worker of a cluster tells the process that waits for it, and what it keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from ctcli.checkpoint.value import Preparation
from ctcli.engine.work import Failure
from ctcli.errors import CtcliError
from ctcli.events import Event
from ctcli.ops.runtime import collect_again, keep_all_objects, limit_blas, reuse_memory

_BEAT_SECONDS = 0.5
# Beside what jobs hold: the interpreter, its packages, and a plan.
_OWN_BYTES = 500_000_000
_ENOUGH = 0.9  # of its limit, a worker's nanny lets it use: at 95 % the worker is killed

Asked = TypeVar("Asked")
Made = TypeVar("Made")


class EndedError(CtcliError):
    """Nobody waits for the task any more."""

    def __init__(self) -> None:
        super().__init__("the job has ended.", "Run the same command again.")


class Kept(Generic[Asked, Made]):
    """The last of what this process has made, such as a plan, by what it was asked for.

    Args:
        make: makes it.
        is_right: whether what was made is what was meant; else it is made again next time.
    """

    def __init__(
        self, make: Callable[[Asked], Made], is_right: Callable[[Asked, Made], bool]
    ) -> None:
        self._make, self._is_right = make, is_right
        self._last: tuple[Asked, Made] | None = None
        self._lock = threading.Lock()

    def keep(self, asked: Asked, made: Made) -> None:
        """Spare this process, and those forked from it, the making."""
        self._last = asked, made

    def __call__(self, asked: Asked) -> Made:
        """It, made unless the last one was asked for likewise."""
        with self._lock:
            if self._last and self._last[0] == asked:
                return self._last[1]
            self._last = None
            limit_blas()
            reuse_memory()
            keep_all_objects()
            try:
                made = self._make(asked)
            finally:
                collect_again()
            if self._is_right(asked, made):
                self._last = asked, made
            return made


class Teller:
    """Tells the process that waits for a task what happens, and ends it if there is none.

    Args:
        task: names the task in what is told.
        topic: where it is told.
    """

    def __init__(self, task: str, topic: str) -> None:
        self._task, self._topic = task, topic
        self._worker = this_worker()
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
        self._worker.log_event(self._topic, {"task": self._task, "event": asdict(event)})

    def prepare(self, preparation: Preparation) -> None:
        """Do what files need first, unless it was done, and tell of every percent."""
        done = told = 0

        def advance(nbytes: int) -> None:
            nonlocal done, told
            if not self.is_wanted:
                raise EndedError
            done += nbytes
            if (percent := 100 * done // preparation.nbytes) > told:
                told = percent
                self.notify(Event("preparing", message=f"{preparation.title}, {percent} %"))

        preparation.run(advance)

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
def telling(task: str, topic: str) -> Iterator[Teller]:
    """Within the block, the process that waits hears of this worker again and again."""
    teller, over = Teller(task, topic), threading.Event()

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


def first_look(*looks: Callable[[], None]) -> Failure | None:
    """Everything that keeps this worker from doing its share.

    Args:
        looks: each raises `CtcliError` with what it finds wrong.
    """
    problems: list[str] = []
    hints: list[str] = []
    for look in looks:
        try:
            look()
        except CtcliError as error:
            failure = Failure.of(error)
            problems += failure.problems
            hints.append(failure.hint)
    return Failure(tuple(problems), " ".join(dict.fromkeys(hints))) if problems else None


def this_worker() -> Any:
    """Dask's worker, on a thread of which this runs."""
    from distributed import get_worker

    return get_worker()


def check_memory(max_memory: int) -> None:
    """Refuse a budget that this worker must not use.

    Raises:
        CtcliError: says how much it may use.
    """
    limit = this_worker().memory_manager.memory_limit
    need = max_memory + _OWN_BYTES
    if limit and limit * _ENOUGH < need:
        raise CtcliError(
            f"it may use {limit:,} bytes of memory, and needs {need / _ENOUGH:,.0f}.",
            "Start workers with --memory-limit 0 or a larger one, or give a smaller --max-memory.",
        )
