"""Source files of a run: fetched ahead of the jobs that read them, and given up after.

Streamed files take turns in natural order. A job can be done from the turn on at which all files
have come that it reads, or that values it needs are made of. With a limit for the disk, a file is
fetched only once there is room for it and for the output files that can then be begun; as turns
come in order, the files of earlier ones are gone by then, and no run can block itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from ctcli.checkpoint.sharding import natural_key
from ctcli.engine.jobs import CopyJob, Job, ReduceJob
from ctcli.lazy.tensors import Reduction, SourceFile
from ctcli.units import Advance

_AHEAD = 2  # turns between the one whose jobs are done now and the last one that is fetched
_AT_ONCE = 2
# A file is fetched in pieces if they are less than so much of it; only a whole one can be checked
# against its hash. Pieces that lie closer together than a request is worth are fetched as one.
_WORTHWHILE = 0.9
_GAP_BYTES = 1 << 20


class Turns:
    """When each job can be done: with the turn of the last streamed file that it depends on."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        self._reached = cache(self._reach)
        every = {source_of(job) for job in jobs} - {None}
        streamed = [file for file in every if file and file.is_streamed]
        self.files = sorted(streamed, key=lambda file: natural_key(file.name))
        self._place = {file: place for place, file in enumerate(self.files)}
        self.jobs = sorted(jobs, key=self.of)
        self._spans: dict[SourceFile, list[range]] = defaultdict(list)
        for job in jobs:
            if (file := source_of(job)) and file.is_streamed:
                self._spans[file].append(_bytes_of(job))

    def of(self, job: Job) -> int:
        """The turn from which on a job can be done; -1 if it depends on no streamed file."""
        own = source_of(job)
        turns = [self._place.get(own, -1) if own else -1, *map(self._reached, job.needs)]
        return max(turns)

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
        begun = {name: self.of(job) for job in reversed(self.jobs) for name in job.files}
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
            name: self.of(job) if name in leaving else turns[-1]
            for job in self.jobs
            for name in job.files
        }
        lives = [(first, ends[name], sizes[name]) for name, first in self.begun(there).items()]
        last_read = {source_of(job): self.of(job) for job in self.jobs}
        lives += [(place, last_read[file], file.size) for file, place in self._place.items()]
        for first, last, nbytes in lives:
            for turn in range(first, last + 1):
                held[turn] += nbytes
        return [*held.values()]

    def _reach(self, reduction: Reduction) -> int:
        before = [need for matrix in reduction.inputs for need in matrix.needs]
        before += [reduction.after] if reduction.after else []
        own = [self._place.get(matrix.source.file, -1) for matrix in reduction.inputs]
        return max([*own, *map(self._reached, before)])


def _bytes_of(job: Job) -> range:
    """The bytes that a job reads of its file, and perhaps some between them."""
    if isinstance(job, CopyJob):
        assert job.copy, "it reads a file"
        return range(job.copy.start, job.copy.start + job.copy.nbytes)
    matrix = job.matrix if isinstance(job, ReduceJob) else job.derivation.matrix
    tensor = matrix.source
    if matrix.is_columnwise:
        return range(tensor.start, tensor.start + tensor.spec.nbytes)
    row_bytes = tensor.spec.nbytes // tensor.spec.shape[0]
    return range(
        tensor.start + job.span.start * row_bytes, tensor.start + job.span.stop * row_bytes
    )


def source_of(job: Job) -> SourceFile | None:
    """The file that a job reads."""
    if isinstance(job, CopyJob):
        return job.copy.source if job.copy else None
    matrix = job.matrix if isinstance(job, ReduceJob) else job.derivation.matrix
    return matrix.source.file


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
        self._unread = Counter(source_of(job) for job in turns.jobs)
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

    def admits(self, job: Job) -> bool:
        """Whether all files that the job depends on have come."""
        turn = self._turns.of(job)
        return turn < self._begun and all(each > turn for each in self._fetching.values())

    @property
    def fetching(self) -> Collection[Future[Path]]:
        """What is on its way."""
        return self._fetching

    def fetch(self, current: Iterable[Job]) -> Collection[Future[Path]]:
        """Fetch what may be fetched now; `current` are the jobs under way and the first that waits.

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

    def done(self, job: Job) -> None:
        """Give a file up after the last job that reads it."""
        file = source_of(job)
        self._unread[file] -= 1
        if file and file.is_streamed and not self._unread[file]:
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
