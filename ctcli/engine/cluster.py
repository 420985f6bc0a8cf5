"""Files given out to the workers of a Dask cluster, which may die, stall, come late and be added.

Dask carries calls and messages; what is done where, and what becomes of it when a worker is lost,
is decided here: a worker has one task at a time, and a file that is made twice is right twice.
"""

from __future__ import annotations

import pydoc
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from ctcli.engine.local import local_cluster, silence
from ctcli.engine.work import Failure
from ctcli.errors import CtcliError
from ctcli.events import Event, Notify
from ctcli.options import cores
from ctcli.units import Advance

_LOCAL = "local:"
_MOST_LOSSES = 3  # of workers while they make one file, before the job is given up
_CONNECT_SECONDS = 30.0
_WORKER_SECONDS = 60.0  # to wait for the first worker
_LOOK_SECONDS = 1.0  # between looks at which workers there are
# A worker that lives says so twice a second.
_SILENT_SECONDS = 20.0
_EXTRA = "Install it: pip install 'ctcli[dask]', here and on all workers."

# Called on a worker with the names of files, and two texts for what it tells; what it returns is
# a failure, or what comes of them.
Call = Callable[..., Any]


@dataclass(eq=False)
class _Task:
    """A call on a worker.

    Attributes:
        worker: its address.
        names: the files to make; none: the worker is checked.
        asks_version: whether it is asked which ctcli it has, if any.
        future: Dask's.
        heard: when it was last heard of.
        nbytes: bytes that it has told of.
    """

    worker: str
    names: tuple[str, ...] = ()
    asks_version: bool = False
    future: Any = None
    heard: float = field(default_factory=time.monotonic)
    nbytes: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether its worker seems to stand still."""
        return time.monotonic() - self.heard > _SILENT_SECONDS


def check_installed() -> None:
    """Refuse to go on without Dask.

    Raises:
        CtcliError: names the extra that brings it.
    """
    try:
        import_module("distributed")
    except ImportError as error:
        raise CtcliError("--cluster needs Dask's package distributed.", _EXTRA) from error


@contextmanager
def connected(where: str, threads: int | None) -> Iterator[Any]:
    """A client of the cluster.

    Args:
        where: a scheduler's address, a scheduler file, or `local:N`.
        threads: of each local worker; None: its share of the cores.

    Raises:
        CtcliError: Dask is not installed, or no scheduler answers.
    """
    check_installed()
    from distributed import Client

    silence()
    count = int(where.removeprefix(_LOCAL)) if where.startswith(_LOCAL) else 0
    share = threads or max(1, cores() // max(1, count))
    with local_cluster(count, share) if count else nullcontext(where) as address:
        given = {"scheduler_file": where} if Path(where).is_file() else {"address": address}
        try:
            client = Client(**given, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise CtcliError(
                f"--cluster {where}: no scheduler answers there: {error}.",
                "Start one by `dask scheduler`, or check the address.",
            ) from error
        try:
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=2)


class Crew:
    """The workers of a cluster while they make files; used by one thread.

    Args:
        client: from `connected`.
        check: called on each worker before it gets files, with two texts for what it tells.
        make: called on a worker, with names of files and the same.
        notify: told of what happens on the workers.
        warn: told what a user should know.
        receive: is given what `make` returns, once for all files that are made together.
        again: what to do where a cluster fails.
    """

    def __init__(
        self,
        client: Any,
        check: Call,
        make: Call,
        notify: Notify,
        warn: Callable[[str], None],
        receive: Callable[[Any], object] = lambda _: None,
        again: str = "Run the same command again: it continues.",
    ) -> None:
        self._client = client
        self._check = check
        self._make = make
        self._advance: Advance = lambda _: None
        self._notify = notify
        self._warn = warn
        self._receive = receive
        self._hint = again
        self._topic = f"ctcli-{uuid4().hex}"
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._something = threading.Event()
        self._ready: set[str] = set()
        self._refused: dict[str, Failure] = {}
        self._seen: set[str] = set()
        self._looked = 0.0
        self._version = ""
        self._lost: Counter[tuple[str, ...]] = Counter()
        self._todo: deque[tuple[str, ...]] = deque()
        client.subscribe_topic(self._topic, self._hear)

    def gather(self, version: str) -> int:
        """See that every worker there is can do its share; returns how many there are.

        Args:
            version: of ctcli.

        Raises:
            CtcliError: lists every problem by its worker; or there is no worker.
        """
        try:
            self._gather(version)
        except BaseException:
            self.stop()
            raise
        return len(self._ready)

    def _gather(self, version: str) -> None:
        end = time.monotonic() + _WORKER_SECONDS
        while not self._look(version):
            if time.monotonic() > end:
                raise CtcliError("--cluster: there are no workers.", "Start some: `dask worker`.")
            self._pause()
        while any(not (self._ready and task.is_silent) for task in self._tasks.values()):
            self._pause()
            self._look(version)
            self._collect()
        for task in self._tasks.values():
            self._warn(f"worker {task.worker} does not answer; it gets files once it does.")
        if self._refused:
            raise self._refusal()

    def write(self, files: Sequence[tuple[str, ...]], version: str, advance: Advance) -> None:
        """Have all files made.

        Args:
            files: names of those that are made together, in the order in which they are given out.
            version: of ctcli, for workers that are added.
            advance: told of every byte; of a negative number where a worker was lost.

        Raises:
            CtcliError: a file cannot be made, or no worker is left that could.
        """
        self._advance = advance
        self._todo.extend(files)
        seen = time.monotonic()
        try:
            while self._todo or any(task.names for task in self._tasks.values()):
                self._look(version)
                self._give_out()
                self._pause()
                self._collect()
                if any(task.names or not task.is_silent for task in self._tasks.values()):
                    seen = time.monotonic()
                elif self._todo and time.monotonic() - seen > _WORKER_SECONDS:
                    raise CtcliError("--cluster: no worker is left.", "Start some. " + self._hint)
        finally:
            self.stop()

    def stop(self) -> None:
        """End all calls: workers notice within a second."""
        with suppress(Exception):
            self._client.cancel([task.future for task in self._tasks.values()], force=True)
        with self._lock:
            self._tasks.clear()

    def _pause(self) -> None:
        self._something.wait(_LOOK_SECONDS / 2)
        self._something.clear()

    def _look(self, version: str) -> bool:
        """See which workers there are, and check those that are new; whether there are any."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return bool(self._seen)
        self._looked = time.monotonic()
        now = set(self._ask(self._client.nthreads))
        for gone in self._seen - now:
            self._lose(gone)
        self._version = version
        for new in sorted(now - self._seen):
            # Whatever version of ctcli is there, or none, this can be asked.
            self._submit(_Task(new, asks_version=True), pydoc.locate, "ctcli.__version__")
        self._seen = now
        return bool(now)

    def _compare(self, worker: str, found: Any) -> None:
        """Check a worker that has this version of ctcli."""
        if found == self._version:
            self._submit(_Task(worker), self._check)
            return
        has = f"it has ctcli {found}" if isinstance(found, str) else "it has no ctcli"
        problem = f"{has}, and this is ctcli {self._version}."
        self._refuse(worker, Failure((problem,), f"Install ctcli {self._version}."))

    def _ask(self, question: Callable[[], Any]) -> Mapping[str, Any]:
        try:
            if self._client.status != "running":
                raise OSError("the connection is closed")
            answer: Mapping[str, Any] = question()
        except (OSError, TimeoutError, RuntimeError) as error:
            raise CtcliError("--cluster: the scheduler does not answer.", self._hint) from error
        return answer

    def _make_files(self, worker: str, names: tuple[str, ...]) -> None:
        self._submit(_Task(worker, names), self._make, names)

    def _submit(self, task: _Task, call: Call, *words: Any) -> None:
        name = f"ctcli-{uuid4().hex}"
        with self._lock:
            self._tasks[name] = task
        told = () if task.asks_version else (name, self._topic)
        task.future = self._client.submit(
            call,
            *words,
            *told,
            key=name,
            workers=[task.worker],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        task.future.add_done_callback(lambda _: self._something.set())

    def _give_out(self) -> None:
        """Give each worker that has nothing to do the next file, or one that stands still."""
        busy = {task.worker for task in self._tasks.values()}
        idle = sorted(self._ready - busy)
        while idle and self._todo:
            self._make_files(idle.pop(0), self._todo.popleft())
        makers: dict[tuple[str, ...], list[_Task]] = {}
        for task in self._tasks.values():
            if task.names:
                makers.setdefault(task.names, []).append(task)
        for names, tasks in makers.items():
            if idle and all(task.is_silent for task in tasks):
                for task in tasks:
                    self._warn(f"worker {task.worker} does not answer; another takes its files.")
                self._make_files(idle.pop(0), names)

    def _collect(self) -> None:
        """See which calls have ended since."""
        if self._client.status != "running":
            self._ask(dict)
        for name, task in [*self._tasks.items()]:
            if task.future is None or name not in self._tasks or not task.future.done():
                continue
            status = task.future.status
            if status == "finished":
                try:
                    answer = task.future.result(timeout=_CONNECT_SECONDS)
                except (TimeoutError, CancelledError, OSError):  # the worker died, or is cut off
                    self._end(name, is_lost=True)
                    self._again(task)
                    continue
                self._end(name)
                self._settle(task, answer)
            else:
                self._ask(self._client.nthreads)  # or is the scheduler gone?
                self._end(name, is_lost=True)
                if status == "error":
                    error = task.future.exception(timeout=_CONNECT_SECONDS)
                    self._settle_error(task, error)
                else:
                    self._again(task)

    def _settle(self, task: _Task, answer: Any) -> None:
        if task.asks_version:
            self._compare(task.worker, answer)
        elif not isinstance(answer, Failure):
            if not task.names:
                self._ready.add(task.worker)
                return
            self._receive(answer)
            for name, other in [*self._tasks.items()]:
                if other.names == task.names:  # a worker that stood still, or was slow
                    self._client.cancel([other.future], force=True)
                    self._end(name, is_lost=True)
        elif not task.names:
            self._refuse(task.worker, answer)
        elif not answer.is_local:
            raise CtcliError(answer.problems, answer.hint)
        else:
            self._ready.discard(task.worker)
            self._refuse(task.worker, answer)
            self._again(task)

    def _settle_error(self, task: _Task, error: BaseException) -> None:
        """What no function of ours raises: a worker died, or could not take the call."""
        if type(error).__name__ == "KilledWorker":
            self._again(task)
        elif task.asks_version:
            self._compare(task.worker, None)
        else:
            raise error

    def _end(self, name: str, *, is_lost: bool = False) -> None:
        with self._lock:
            task = self._tasks.pop(name)
        if is_lost:
            self._advance(-task.nbytes)

    def _lose(self, worker: str) -> None:
        self._ready.discard(worker)
        self._refused.pop(worker, None)
        for name, task in [*self._tasks.items()]:
            if task.worker == worker:
                self._end(name, is_lost=True)
                with suppress(Exception):
                    self._client.cancel([task.future], force=True)
                self._warn(f"worker {worker} was lost.")
                self._again(task)

    def _again(self, task: _Task) -> None:
        """Have another worker make the files of a task that came to nothing, or check it again."""
        if not task.names:
            self._seen.discard(task.worker)
            return
        if any(task.names == other.names for other in self._tasks.values()):
            return
        self._lost[task.names] += 1
        if self._lost[task.names] > _MOST_LOSSES:
            raise CtcliError(
                f"{task.names[0]}: {_MOST_LOSSES + 1} workers were lost while they had it.",
                "See what the workers' logs say; memory may be too small. " + self._hint,
            )
        self._todo.appendleft(task.names)

    def _refuse(self, worker: str, failure: Failure) -> None:
        """Give a worker nothing; which is an error if it is the last one."""
        self._refused[worker] = failure
        if self._ready or self._todo:
            for problem in failure.problems:
                self._warn(f"worker {worker}: {problem}")
        if self._todo and not self._ready and not self._tasks:
            raise self._refusal()

    def _refusal(self) -> CtcliError:
        workers: dict[str, list[str]] = {}
        for worker, failure in sorted(self._refused.items()):
            for problem in failure.problems:
                workers.setdefault(problem, []).append(worker)
        problems = [f"{_some(have)}: {problem}" for problem, have in workers.items()]
        hints = dict.fromkeys(failure.hint for failure in self._refused.values())
        return CtcliError(problems, " ".join(hints))

    def _hear(self, message: tuple[float, Mapping[str, Any]]) -> None:
        """What a worker tells; on a thread of the client's."""
        told = message[1]
        with self._lock:
            task = self._tasks.get(told["task"])
            if task is None:
                return
            task.heard = time.monotonic()
            task.nbytes += told.get("advance", 0)
            worker = task.worker
        if "event" in told:
            self._notify(Event(**{**told["event"], "worker": worker}))
        else:
            self._advance(told["advance"])


def _some(workers: Sequence[str]) -> str:
    """Workers that have the same problem, in words."""
    first, *others = workers
    return f"worker {first}" + (f" and {len(others)} more" if others else "")
