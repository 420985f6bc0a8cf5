"""The jobs of a run: plain data that says what to read, what to do with it, where to write.

How a run is cut into jobs depends on the layout alone, never on the number of workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ctcli.storage.journal import Place
from ctcli.storage.layout import Copy, OutputFile
from ctcli.storage.transfer import BUFFER_BYTES
from ctcli.tensors import Derivation, Reduction, StoredTensor

# A file is copied by several threads at once, in pieces of at most this many bytes.
_COPY_BYTES = 256 * 1024 * 1024
# Arithmetic goes over blocks of so many elements: small enough for their temporaries to stay in
# cache, large enough for the hundred calls on each block not to matter.
_BLOCK_ELEMENTS = 512 * 1024
# A job computes several blocks: few enough for a signal to be answered at once.
_JOB_ELEMENTS = 8 * _BLOCK_ELEMENTS
# A file is read and written by columns in runs of at least so many: each costs two system calls.
COLUMNS_AT_ONCE = 1024
# What a block needs while it is computed, beside its own bytes: float32 temporaries.
_BYTES_PER_ELEMENT = 32


@dataclass(frozen=True)
class CopyJob:
    """Take over some bytes of a source file; without `copy`, a file whose bytes are known."""

    file: OutputFile
    copy: Copy | None
    memory: int = BUFFER_BYTES
    needs: tuple[Reduction, ...] = ()

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
    """Reduce some rows of a tensor."""

    reduction: Reduction
    source: StoredTensor
    rows: range
    files: frozenset[str] = frozenset()

    @property
    def memory(self) -> int:
        """Bytes it holds while it runs."""
        return _memory(self.source.spec.shape, self.source.spec.nbytes, self.rows)

    @property
    def needs(self) -> tuple[Reduction, ...]:
        """What must be known before."""
        return (self.reduction.after,) if self.reduction.after else ()


@dataclass(frozen=True)
class Target:
    """Where an output of a derivation goes."""

    file: str
    output: str
    offset: int


@dataclass(frozen=True)
class ComputeJob:
    """Compute the outputs of a derivation for some of its source's rows or columns, in blocks.

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
        spec = self.derivation.source.spec
        shape = spec.shape[::-1] if self.derivation.columnwise else spec.shape
        return _memory(shape, spec.nbytes, self.span)

    @property
    def needs(self) -> tuple[Reduction, ...]:
        """What must be known before."""
        return self.derivation.needs


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
    # Copies come first: they need no torch, which takes a second to load.
    copies = (job for file in files for job in _copies(file, link))
    jobs: list[Job] = [job for job in copies if (job.file.name, job.place) not in done]
    known: set[Reduction] = set()
    for file in files:
        for derivation in dict.fromkeys(part.tensor.derivation for part in file.computed):
            every = _computations(derivation, tuple(targets.pop(derivation, ())))
            if todo := [job for job in every if (job.targets[0].file, job.place) not in done]:
                for reduction in derivation.needs:
                    jobs += _reductions(reduction, known)
                jobs += todo
    return jobs


def _runs(shape: tuple[int, ...], granule: int, least: int = 1) -> Iterator[range]:
    """The first dimension of `shape` in the runs of a job each, with the height of its blocks.

    Args:
        shape: rows and columns, or the other way round.
        granule: how many belong together.
        least: how many a block has at least.
    """
    length, across = shape
    height = max(least, _BLOCK_ELEMENTS // max(1, across))
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


def _reductions(reduction: Reduction | None, known: set[Reduction]) -> Iterator[Job]:
    if reduction is None or reduction in known:
        return
    known.add(reduction)
    yield from _reductions(reduction.after, known)
    for source in reduction.inputs:
        for rows in _runs(source.spec.shape, 1):
            yield ReduceJob(reduction, source, rows)


def _computations(derivation: Derivation, targets: tuple[Target, ...]) -> Iterator[ComputeJob]:
    if not targets:
        return
    shape = derivation.source.spec.shape
    runs = (
        _runs(shape[::-1], derivation.granule, COLUMNS_AT_ONCE)
        if derivation.columnwise
        else _runs(shape, derivation.granule)
    )
    for span in runs:
        yield ComputeJob(derivation, span, targets)


def _memory(shape: tuple[int, ...], nbytes: int, span: range) -> int:
    length, across = shape
    return min(span.step, length) * (nbytes // length + across * _BYTES_PER_ELEMENT)
