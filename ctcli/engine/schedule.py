"""Jobs on a pool of threads, within a byte budget, each once what it needs is known."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

from ctcli.engine.jobs import Job, NodeJob, Task, held_at_once
from ctcli.engine.perform import Cancelled, Done
from ctcli.lazy.stacks import STACK_MEMORY
from ctcli.lazy.values import Values
from ctcli.units import Advance

# Small jobs are handed to a thread as many at once as read so many bytes together, which takes some
# milliseconds; and they are looked for among so many that wait.
_BATCH_BYTES = 8 * 2**20
_BATCH_JOBS = 512
# How far down the queue a job is looked for whose file no other thread writes just then: jobs come
# from as many files in turn as there are threads.
_LOOKAHEAD = 2


class Schedule:
    """The jobs of some tasks, while they are done.

    Args:
        tasks: what to do.
        jobs: all jobs of the tasks, in order; values before what needs them.
        workers: threads.
        max_memory: bytes that jobs under way and values may hold together.
        do: does some jobs on any thread, one after the other; is given the values that are known.
        admits: whether what a task reads has come.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        jobs: Iterator[tuple[Task, Job]],
        workers: int,
        max_memory: int,
        do: Callable[[Sequence[Job], Values], list[Done]],
        admits: Callable[[Task], bool] = lambda _: True,
    ) -> None:
        self._workers = workers
        self._max_memory = max_memory
        self._do = do
        self._admits = admits
        self._values = Values()
        for task in tasks:
            if task.node:
                self._values.expect(task.node, task.count)
        self._coming = jobs
        self._waiting: deque[tuple[Task, Job]] = deque()
        self.running: dict[Future[list[Done]], list[Task]] = {}
        self._pool = ThreadPoolExecutor(workers)

    @property
    def is_over(self) -> bool:
        """Whether no job is under way or waits."""
        return not self.running and not self._look(1)

    @property
    def current(self) -> Iterator[Task]:
        """The tasks of the jobs under way, and that of the first which waits."""
        yield from chain.from_iterable(self.running.values())
        yield from (task for task, _ in islice(self._waiting, self._look(1)))

    def start(self) -> None:
        """Begin as many jobs as threads and memory admit."""
        while batch := self._next():
            tasks, jobs = [task for task, _ in batch], [job for _, job in batch]
            self.running[self._pool.submit(self._do, jobs, self._values)] = tasks

    def collect(self) -> list[tuple[Task, Done]]:
        """See which jobs have been done since; raises what one raised."""
        ended = [future for future in self.running if future.done()]
        found = [
            pair
            for future in ended
            for pair in zip(self.running[future], future.result(), strict=True)
        ]
        for future in ended:
            del self.running[future]
        for task, done in found:
            if not task.node:
                continue
            self._values.used(task.node)
            if done.value is not None:
                assert isinstance(done.job, NodeJob)
                self._values.add(task.node, done.job.start, done.value, task.count)
        return found

    def stop(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[tuple[Task, Job]]:
        """The next job that waits and has all it needs, if the budget admits it now; if it is a
        small one, with others that are.
        """
        if len(self.running) == self._workers:
            return []
        under_way = [*chain.from_iterable(self.running.values())]
        ready = self._ready(frozenset().union(*(task.files for task in under_way)))
        if ready is None:
            return []
        first, _ = self._waiting[ready]
        held = sum(held_at_once(tasks) for tasks in self.running.values())
        free = self._max_memory - self._values.nbytes - held
        if self.running and first.memory > free:
            return []
        return self._taken(ready, first, free if free < STACK_MEMORY else math.inf)

    def _taken(self, ready: int, first: Task, free: float) -> list[tuple[Task, Job]]:
        """A job that waits, and those behind it that go with it: they are as small as it is, or
        smaller, write the same files, have all they need, and together hold no more than is free.
        """
        room, free = _BATCH_BYTES - first.work, free - first.memory
        taken = [self._waiting[ready]]
        del self._waiting[ready]
        seen = ready
        while room >= first.work and seen < _BATCH_JOBS and self._look(seen + 1) > seen:
            task, _ = found = self._waiting[seen]
            if not self._admits(task):
                break
            is_small = task.memory <= min(first.memory, free) and task.work <= room
            if is_small and task.files == first.files and self._values.has(task.needs):
                taken.append(found)
                room, free = room - task.work, free - task.memory
                del self._waiting[seen]
            else:
                seen += 1
        return taken

    def _ready(self, busy: frozenset[str]) -> int | None:
        """Which waiting job has all it needs: of the first few, one whose files are not `busy`."""
        first, i = None, 0
        while self._look(i + 1) > i:
            task, _ = self._waiting[i]
            if not self._admits(task) or (first is not None and i > _LOOKAHEAD * self._workers):
                break
            if self._values.has(task.needs):
                if busy.isdisjoint(task.files):
                    return i
                first = i if first is None else first
            i += 1
        return first

    def _look(self, count: int) -> int:
        """Have so many jobs wait, as long as there are any; returns how many do."""
        while len(self._waiting) < count and (found := next(self._coming, None)):
            self._waiting.append(found)
        return min(count, len(self._waiting))


class Stop:
    """Passes progress on, until the run ends: then it ends the jobs that tell of it.

    Args:
        advance: told of every byte.
    """

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._event = threading.Event()

    def __call__(self, nbytes: int) -> None:
        """Note progress, from any thread."""
        if self._event.is_set():
            raise Cancelled
        self._advance(nbytes)

    def stop(self) -> None:
        """Make every job that is under way end soon, with `Cancelled`."""
        self._event.set()
