"""The jobs of a run: plain data that says what to read, what to do with it, where to write.

How a run is cut into jobs depends on the layout alone, never on the number of workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ctcli.storage.layout import Copy, OutputFile
from ctcli.storage.transfer import BUFFER_BYTES
from ctcli.tensors import Derivation, Reduction, StoredTensor, TensorSpec

# A file is copied by several threads at once, in pieces of at most this many bytes.
_COPY_BYTES = 256 * 1024 * 1024
# Arithmetic goes over blocks of so many elements: small enough for their temporaries to stay in
# cache, large enough for the hundred calls on each block not to matter.
_BLOCK_ELEMENTS = 512 * 1024
# A job computes several blocks: few enough for a signal to be answered at once.
_JOB_ELEMENTS = 8 * _BLOCK_ELEMENTS
# What a block needs while it is computed, beside its own bytes: float32 temporaries.
_BYTES_PER_ELEMENT = 32


@dataclass(frozen=True)
class CopyJob:
    """Take over some bytes of a source file; without `copy`, a file whose bytes are known."""

    file: OutputFile
    copy: Copy | None
    memory: int = BUFFER_BYTES
    needs: Reduction | None = None

    @property
    def files(self) -> frozenset[str]:
        """The output files that the job writes to."""
        return frozenset({self.file.name})


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
        return _memory(self.source.spec, self.rows)

    @property
    def needs(self) -> Reduction | None:
        """What must be known before."""
        return self.reduction.after


@dataclass(frozen=True)
class Target:
    """Where an output of a derivation goes."""

    file: str
    output: str
    offset: int


@dataclass(frozen=True)
class ComputeJob:
    """Compute the outputs of a derivation for some of its source's rows, block by block.

    Attributes:
        derivation: what to compute.
        rows: from, to (exclusive) and block height.
        targets: where the outputs go; those of complete files are left out.
    """

    derivation: Derivation
    rows: range
    targets: tuple[Target, ...]

    @property
    def files(self) -> frozenset[str]:
        """The output files that the job writes to."""
        return frozenset(target.file for target in self.targets)

    @property
    def memory(self) -> int:
        """Bytes it holds while it runs."""
        return _memory(self.derivation.source.spec, self.rows)

    @property
    def needs(self) -> Reduction | None:
        """What must be known before."""
        return self.derivation.needs


Job = CopyJob | ReduceJob | ComputeJob


def make_jobs(files: Iterable[OutputFile], link: bool) -> list[Job]:
    """Cut the writing of `files` into jobs; what a job needs stands before it.

    Args:
        files: what to write.
        link: files that are taken over whole stay whole, to be linked.
    """
    files = list(files)
    targets: dict[Derivation, list[Target]] = defaultdict(list)
    for file in files:
        for part in file.computed:
            target = Target(file.name, part.tensor.output, part.offset)
            targets[part.tensor.derivation].append(target)
    # Copies come first: they need no torch, which takes a second to load.
    jobs: list[Job] = [job for file in files for job in _copies(file, link)]
    known: set[Reduction] = set()
    for file in files:
        for derivation in dict.fromkeys(part.tensor.derivation for part in file.computed):
            if derivation in targets:
                jobs += _reductions(derivation.needs, known)
                jobs += _computations(derivation, tuple(targets.pop(derivation)))
    return jobs


def blocks(spec: TensorSpec, granule: int, elements: int) -> Iterator[range]:
    """The rows of a tensor in runs of about `elements` elements, of whole granules each."""
    rows, columns = spec.shape
    height = max(1, _BLOCK_ELEMENTS // max(1, columns * granule)) * granule
    together = max(1, elements // max(1, columns * height)) * height
    for start in range(0, rows, together):
        yield range(start, min(start + together, rows), height)


def _copies(file: OutputFile, link: bool) -> list[Job]:
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
        for rows in blocks(source.spec, 1, _JOB_ELEMENTS):
            yield ReduceJob(reduction, source, rows)


def _computations(derivation: Derivation, targets: tuple[Target, ...]) -> Iterator[Job]:
    for rows in blocks(derivation.source.spec, derivation.granule, _JOB_ELEMENTS):
        yield ComputeJob(derivation, rows, targets)


def _memory(spec: TensorSpec, rows: range) -> int:
    row_bytes = spec.nbytes // spec.shape[0] + spec.shape[1] * _BYTES_PER_ELEMENT
    return rows.step * row_bytes
