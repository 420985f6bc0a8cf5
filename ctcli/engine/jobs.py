"""The jobs of a run: plain data that says what to read, what to do with it, where to write.

How a run is cut into jobs depends on the layout alone, never on the number of workers.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ctcli.lazy.tensors import Derivation, Matrix, Reduction
from ctcli.storage.journal import Place
from ctcli.storage.layout import Copy, OutputFile
from ctcli.storage.transfer import BUFFER_BYTES

# A file is copied by several threads at once, in pieces of at most this many bytes.
_COPY_BYTES = 256 * 1024 * 1024
# Arithmetic goes over blocks of so many elements: small enough for their temporaries to stay in
# cache, large enough for the hundred calls on each block not to matter.
BLOCK_ELEMENTS = 512 * 1024
# A file is read and written by columns in runs of so many: a row of them, which costs two system
# calls, is several pages long.
_COLUMNS_AT_ONCE = 4096
# A job computes several blocks: few enough for a signal to be answered at once.
_JOB_ELEMENTS = 8 * BLOCK_ELEMENTS
# What a block needs while it is computed, beside its own bytes: float32 temporaries.
_BYTES_PER_ELEMENT = 32


@dataclass(frozen=True)
class CopyJob:
    """Take over some bytes of a source file; without `copy`, a file whose bytes are known."""

    file: OutputFile
    copy: Copy | None
    memory: int = BUFFER_BYTES
    needs: tuple[Reduction, ...] = ()
    uses_torch: bool = False

    @property
    def files(self) -> frozenset[str]:
        """The output files that the job writes to."""
        return frozenset({self.file.name})

    @property
    def place(self) -> Place:
        """Tells it from the file's other jobs."""
        return self.copy.offset if self.copy else 0, 0


@dataclass(frozen=True)
class ReduceJob:
    """Reduce some rows or columns of a matrix."""

    reduction: Reduction
    matrix: Matrix
    span: range
    files: frozenset[str] = frozenset()

    @property
    def memory(self) -> int:
        """Bytes it holds while it runs."""
        return _memory(self.matrix, self.matrix.granule[self.matrix.is_columnwise], self.span)

    @property
    def needs(self) -> tuple[Reduction, ...]:
        """What must be known before."""
        after = (self.reduction.after,) if self.reduction.after else ()
        return (*after, *self.matrix.needs)

    @property
    def uses_torch(self) -> bool:
        """Whether torch has to be loaded."""
        return not self.reduction.takes_bits


@dataclass(frozen=True)
class Target:
    """Where an output of a derivation goes."""

    file: str
    output: str
    offset: int


@dataclass(frozen=True)
class ComputeJob:
    """Compute the outputs of a derivation for some of its matrix's rows or columns, in blocks.

    Attributes:
        derivation: what to compute.
        span: rows or columns: from, to (exclusive) and how many in a block.
        targets: where the outputs go; those of complete files are left out.
    """

    derivation: Derivation
    span: range
    targets: tuple[Target, ...]

    @property
    def files(self) -> frozenset[str]:
        """The output files that the job writes to."""
        return frozenset(target.file for target in self.targets)

    @property
    def place(self) -> Place:
        """Tells it from other jobs of its first target's file."""
        return self.targets[0].offset, self.span.start

    @property
    def memory(self) -> int:
        """Bytes it holds while it runs."""
        return _memory(self.derivation.matrix, self.derivation.granule, self.span)

    @property
    def needs(self) -> tuple[Reduction, ...]:
        """What must be known before."""
        if self.derivation.direct:
            return self.derivation.direct.needs
        return (*self.derivation.needs, *self.derivation.matrix.needs)

    @property
    def uses_torch(self) -> bool:
        """Whether torch has to be loaded."""
        return self.derivation.direct is None


Job = CopyJob | ReduceJob | ComputeJob


def make_jobs(
    files: Iterable[OutputFile], link: bool, done: Collection[tuple[str, Place]] = ()
) -> list[Job]:
    """Cut the writing of `files` into jobs; what a job needs stands before it.

    Args:
        files: what to write.
        link: files that are taken over whole stay whole, to be linked.
        done: file and place of jobs that need not be done again.
    """
    files = list(files)
    targets: dict[Derivation, list[Target]] = defaultdict(list)
    for file in files:
        for part in file.computed:
            target = Target(file.name, part.tensor.output, part.offset)
            targets[part.tensor.derivation].append(target)
    copies = (job for file in files for job in _copies(file, link))
    jobs: list[Job] = [job for job in copies if (job.file.name, job.place) not in done]
    known: set[Reduction] = set()
    for file in files:
        for derivation in dict.fromkeys(part.tensor.derivation for part in file.computed):
            every = _computations(derivation, tuple(targets.pop(derivation, ())))
            if todo := [job for job in every if (job.targets[0].file, job.place) not in done]:
                for reduction in todo[0].needs:
                    jobs += _reductions(reduction, known)
                jobs += todo
    return jobs


def spread(jobs: Iterable[Job], width: int) -> list[Job]:
    """Jobs on `width` files in turn, until these are done: threads that write one file queue up.

    What needs no torch, which takes a second to load, comes first. What a job needs may now come
    a little behind it.
    """
    every = list(jobs)
    light = [job for job in every if not job.uses_torch]
    heavy = [job for job in every if job.uses_torch]
    return [*_in_turn(light, width), *_in_turn(heavy, width)]


def _in_turn(jobs: Iterable[Job], width: int) -> Iterator[Job]:
    queues: dict[str, deque[Job]] = defaultdict(deque)
    reductions: list[Job] = []
    for job in jobs:
        if job.files:
            queues[min(job.files)].extend([*reductions, job])
            reductions = []
        else:
            reductions.append(job)
    waiting, current = deque(queues.values()), deque[deque[Job]]()
    while current or waiting:
        while waiting and len(current) < width:
            current.append(waiting.popleft())
        queue = current.popleft()
        yield queue.popleft()
        if queue:
            current.append(queue)


def _runs(matrix: Matrix, granule: int) -> Iterator[range]:
    """The rows of a matrix, or its columns, in the runs of a job each; a step is a block."""
    length, across = matrix.source.spec.shape
    if matrix.is_columnwise:
        length, across = across, length
    least = _COLUMNS_AT_ONCE if matrix.is_columnwise else 1
    height = max(least, BLOCK_ELEMENTS // max(1, across))
    height = max(1, height // granule) * granule
    together = max(1, _JOB_ELEMENTS // max(1, across * height)) * height
    for start in range(0, length, together):
        yield range(start, min(start + together, length), height)


def _copies(file: OutputFile, link: bool) -> list[CopyJob]:
    if link and file.verbatim:
        return [CopyJob(file, file.copies[0])]
    pieces = [piece for copy in file.copies for piece in copy.split(_COPY_BYTES)]
    if not pieces and not file.computed:
        return [CopyJob(file, None)]
    return [CopyJob(file, piece) for piece in pieces]


def _reductions(reduction: Reduction, known: set[Reduction]) -> Iterator[Job]:
    if reduction in known:
        return
    known.add(reduction)
    before = [need for matrix in reduction.inputs for need in matrix.needs]
    for each in (*([reduction.after] if reduction.after else []), *before):
        yield from _reductions(each, known)
    for matrix in reduction.inputs:
        for span in _runs(matrix, matrix.granule[matrix.is_columnwise]):
            yield ReduceJob(reduction, matrix, span)


def _computations(derivation: Derivation, targets: tuple[Target, ...]) -> Iterator[ComputeJob]:
    if targets:
        for span in _runs(derivation.matrix, derivation.granule):
            yield ComputeJob(derivation, span, targets)


def _memory(matrix: Matrix, granule: int, span: range) -> int:
    """Bytes of what is read at once, with what is computed from it.

    Columns are computed in bands, whose results are then joined.
    """
    spec = matrix.source.spec
    length, across = spec.shape[::-1] if matrix.is_columnwise else spec.shape
    elements, stored = min(span.step, length) * across, min(span.step, length) * spec.nbytes
    stored //= length
    if not matrix.is_columnwise:
        return stored + elements * _BYTES_PER_ELEMENT
    band = min(elements, max(BLOCK_ELEMENTS, across * granule))
    return stored + band * _BYTES_PER_ELEMENT + 2 * max(stored, 4 * elements)
