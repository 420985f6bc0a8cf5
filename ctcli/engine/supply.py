"""Source files of a run: fetched ahead of the jobs that read them, and given up after.

Streamed files take turns in natural order. A task can be done from the turn on at which all files
have come that it reads, or that values it needs are made of. With a limit for the disk, a file is
fetched only once there is room for it and for the output files that can then be begun; as turns
come in order, the files of earlier ones are gone by then, and no run can block itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import groupby
from pathlib import Path

from ctcli.checkpoint.sharding import natural_key
from ctcli.engine.jobs import Job, Task, in_turn
from ctcli.lazy.nodes import Node
from ctcli.lazy.tensors import SourceFile
from ctcli.units import Advance

_AHEAD = 2  # turns between the one whose jobs are done now and the last one that is fetched
_AT_ONCE = 2
# A file is fetched in pieces if they are less than so much of it; only a whole one can be checked
# against its hash. Pieces that lie closer together than a request is worth are fetched as one.
_WORTHWHILE = 0.9
_GAP_BYTES = 1 << 20


class Turns:
    """When each task can be done: with the turn of the last streamed file that it depends on.

    Args:
        tasks: what is to be done.
        streams: whether there may be streamed files.
    """

    def __init__(self, tasks: Sequence[Task], streams: bool = True) -> None:
        self._reached = cache(self._reach)
        every = (file for task in tasks for file in task.sources) if streams else ()
        streamed = {file for file in every if file.is_streamed}
        self.files = sorted(streamed, key=lambda file: natural_key(file.name))
        self._place = {file: place for place, file in enumerate(self.files)}
        self.tasks = sorted(tasks, key=self.of) if streamed else list(tasks)
        self._spans: dict[SourceFile, list[range]] = defaultdict(list)
        for task in tasks if streamed else ():
            for file, span in task.reads():
                if file.is_streamed:
                    self._spans[file].append(span)

    def of(self, task: Task) -> int:
        """The turn from which on a task can be done; -1 if it depends on no streamed file."""
        if not self._place:
            return -1
        own = [self._place.get(file, -1) for file in task.sources]
        return max([-1, *own, *map(self._reached, task.needs)])

    def jobs(self, width: int) -> Iterator[tuple[Task, Job]]:
        """All jobs, turn after turn, and on `width` files in turn in each."""
        for _, tasks in groupby(self.tasks, self.of):
            yield from in_turn(tasks, width)

    def pieces(self, file: SourceFile) -> list[range]:
        """The bytes of a streamed file that are to be fetched: what jobs read, or all of it."""
        merged: list[range] = []
        for span in sorted(self._spans[file], key=lambda span: span.start):
            if merged and span.start <= merged[-1].stop + _GAP_BYTES:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, span.stop))
            else:
                merged.append(span)
        # What an earlier run left of the whole file may leave less to be downloaded.
        saves = sum(map(len, merged)) < min(_WORTHWHILE * file.size, file.fetch_bytes)
        return merged if saves else [range(file.size)]

    @property
    def fetch_bytes(self) -> int:
        """Bytes to be downloaded."""
        return sum(map(self.fetch_bytes_of, self.files))

    def fetch_bytes_of(self, file: SourceFile) -> int:
        """Bytes of a streamed file to be downloaded."""
        return min(sum(map(len, self.pieces(file))), file.fetch_bytes)

    def begun(self, there: Collection[str]) -> dict[str, int]:
        """The turn from which on each output file lies on the disk.

        Args:
            there: files of which an earlier run wrote parts.
        """
        begun = {name: self.of(task) for task in reversed(self.tasks) for name in task.files}
        return {name: -1 if name in there else turn for name, turn in begun.items()}

    def disk(
        self, sizes: Mapping[str, int], leaving: Collection[str], there: Collection[str]
    ) -> list[int]:
        """Bytes that lie on the disk at each turn at least, from the one before the first file.

        Args:
            sizes: of the output files, by name.
            leaving: output files that do not stay once they are complete.
            there: output files of which an earlier run wrote parts.
        """
        turns = range(-1, len(self.files))
        held = dict.fromkeys(turns, 0)
        ends = {
            name: self.of(task) if name in leaving else turns[-1]
            for task in self.tasks
            for name in task.files
        }
        lives = [(first, ends[name], sizes[name]) for name, first in self.begun(there).items()]
        last_read = {
            file: self.of(task) for task in self.tasks if self.files for file in task.sources
        }
        lives += [(place, last_read[file], file.size) for file, place in self._place.items()]
        for first, last, nbytes in lives:
            for turn in range(first, last + 1):
                held[turn] += nbytes
        return [*held.values()]

    def _reach(self, value: Node) -> int:
        own = [self._place.get(tensor.file, -1) for tensor in value.reads]
        return max([-1, *own, *map(self._reached, value.values)])


class Supply:
    """The streamed files of a run, while it runs; used by one thread.

    Args:
        turns: when which file is needed.
        sizes: of the output files, by name.
        there: output files of which an earlier run wrote parts.
        held: bytes of output files that an earlier run completed, on this disk.
        max_disk: the limit for all that lies there; None: no limit.
        advance: told of bytes downloaded; of a negative number where they must come again.
    """

    def __init__(
        self,
        turns: Turns,
        sizes: Mapping[str, int],
        there: Collection[str],
        held: int,
        max_disk: int | None,
        advance: Advance,
    ) -> None:
        self._turns = turns
        self._max_disk = max_disk
        self._advance = advance
        self._unread: Counter[SourceFile] = Counter()
        for task in turns.tasks:
            self._unread.update(dict.fromkeys(task.sources, task.count))
        self._room: list[int] = [file.size for file in turns.files]
        self._held = held
        for name, turn in turns.begun(there).items():
            if turn < 0:
                self._held += sizes[name]
            else:
                self._room[turn] += sizes[name]
        self._begun = 0  # turns whose file is fetched, or has come
        self._fetching: dict[Future[Path], int] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._drop_what_has_no_room()

    def admits(self, task: Task) -> bool:
        """Whether all files that a task depends on have come."""
        turn = self._turns.of(task)
        return turn < self._begun and all(each > turn for each in self._fetching.values())

    @property
    def fetching(self) -> Collection[Future[Path]]:
        """What is on its way."""
        return self._fetching

    def fetch(self, current: Iterable[Task]) -> Collection[Future[Path]]:
        """Fetch what may be fetched now; `current` are the tasks of the jobs under way, and that of
        the first which waits.

        Returns:
            What is on its way.
        """
        last = min(map(self._turns.of, current), default=-1 - _AHEAD) + _AHEAD
        while self._begun <= min(last, len(self._turns.files) - 1):
            room = self._room[self._begun]
            if self._max_disk is not None and self._held + room > self._max_disk:
                break
            self._held += room
            file = self._turns.files[self._begun]
            pieces = self._turns.pieces(file)
            fetching = (
                self._pool.submit(file.fetch, self._advance)
                if pieces == [range(file.size)]
                else self._pool.submit(file.fetch_pieces, pieces, self._advance)
            )
            self._fetching[fetching] = self._begun
            self._begun += 1
        return self._fetching

    def receive(self) -> list[SourceFile]:
        """See which files have come since; raises what fetching one raised."""
        come = [future for future in self._fetching if future.done()]
        for future in come:
            future.result()
        return [self._turns.files[self._fetching.pop(future)] for future in come]

    def done(self, task: Task) -> None:
        """Give files up after the last job that reads them."""
        for file in task.sources:
            self._unread[file] -= 1
            if file.is_streamed and not self._unread[file]:
                file.release()
                self.freed(file.size)

    def freed(self, nbytes: int) -> None:
        """So many bytes of the disk are free again."""
        self._held -= nbytes

    def _drop_what_has_no_room(self) -> None:
        """Of files that an earlier run fetched, keep those that fit in beside all before them."""
        held = self._held
        for file, room in zip(self._turns.files, self._room, strict=True):
            held += room
            if self._max_disk is not None and held > self._max_disk:
                before = self._turns.fetch_bytes_of(file)
                file.release()
                self._advance(before - self._turns.fetch_bytes_of(file))

    def stop(self) -> None:
        """Fetch no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
