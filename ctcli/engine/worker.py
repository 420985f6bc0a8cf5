"""What a worker thread does with one job."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ctcli.engine.jobs import BLOCK_ELEMENTS, ComputeJob, CopyJob, Job, ReduceJob
from ctcli.engine.reductions import Values, combine
from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.tensors import (
    Derivation,
    Matrix,
    NonFiniteError,
    SourceFile,
    StoredTensor,
    from_bits,
    to_bits,
)
from ctcli.ops.runtime import load_torch
from ctcli.storage.journal import Part
from ctcli.storage.output import OpenOutput, combine_measures
from ctcli.storage.rows import read_columns, read_rows, write_columns, write_rows
from ctcli.storage.transfer import copy_bytes
from ctcli.storage.writer import PartialDirectory
from ctcli.units import Advance

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Bits

# The first gigabyte is touched ahead, in steps that keep no job waiting for long.
_TOUCH_STEP, _TOUCH_STEPS = 4 << 20, 256
_LEAVE_ALONE = "Leave SRC alone while ctcli runs, then run the same command again."


def _load_torch() -> None:
    gc.disable()  # all that torch makes stays, and looking through it takes a tenth of the time
    load_torch()
    gc.freeze()
    gc.enable()


class Cancelled(BaseException):
    """Ends a worker after another one failed or a signal came."""


def _joined(derivation: Derivation, found: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Bits]:
    """The outputs of neighbouring blocks of columns as those of one block."""
    import torch

    return {
        name: to_bits(
            tensor
            if len(found) == 1 or derivation.outputs[name].is_whole
            else torch.cat([f[name] for f in found], 1)
        )
        for name, tensor in found[0].items()
    }


class Worker:
    """Does jobs, on any thread."""

    def __init__(
        self,
        outputs: Mapping[str, OpenOutput],
        values: Values,
        partial: PartialDirectory,
        link: bool,
        advance: Advance,
    ) -> None:
        self._outputs = outputs
        self._values = values
        self._partial = partial
        self._link = link
        self._report = advance
        self._stop = threading.Event()
        self._torch: Future[None] | None = None

    def prepare(self, touch: bool) -> None:
        """Load torch on a thread of its own; what needs none goes on meanwhile.

        Args:
            touch: whether memory may be made ready, which takes up room on the disk.
        """
        self._torch = ThreadPoolExecutor(1).submit(_load_torch)
        if touch:
            threading.Thread(target=self._touch, args=(self._torch,), daemon=True).start()

    def stop(self) -> None:
        """Make every job that is under way end soon, with `Cancelled`."""
        self._stop.set()

    def _touch(self, torch: Future[None]) -> None:
        """Until torch is loaded, have memory ready for what will be computed then.

        Loading keeps one core busy for a second, and pages are a fifth of a later write's time.
        """
        outputs = [output for output in self._outputs.values() if output.file.computed]
        steps = ((o, start) for o in outputs for start in range(0, o.file.size, _TOUCH_STEP))
        with suppress(CtcliError):  # a file that cannot be created: its jobs will say so
            for output, start in itertools.islice(steps, _TOUCH_STEPS):
                if torch.done() or self._stop.is_set():
                    return
                if not output.touch(start, min(_TOUCH_STEP, output.file.size - start)):
                    return

    def do(self, job: Job) -> None:
        """Do one job, and complete the output files that it was the last one of."""
        if self._torch and job.uses_torch:
            self._torch.result()
        part = None
        match job:
            case CopyJob():
                part = self._copy(job)
            case ReduceJob():
                self._reduce(job)
            case ComputeJob():
                part = self._compute(job)
                self._outputs[part.file].measure(part)
        for name in job.files:
            # What went into several files cannot be taken up again in one of them.
            self._outputs[name].job_done(part if len(job.files) == 1 else None)

    def _copy(self, job: CopyJob) -> Part | None:
        copy, name = job.copy, job.file.name
        if copy is None:
            self._outputs[name].descriptor()
            return None
        if self._link and job.file.verbatim:
            path = copy.source.fetch(self.advance)
            if self._partial.link(name, path):
                self.advance(job.file.size)
                return None
        target = self._outputs[name].descriptor()
        with self._reading(copy.source) as source, os_errors_of(name, "writing"):
            copy_bytes(source, copy.start, target, copy.offset, copy.nbytes, self.advance)
        return Part(name, job.place, copy.nbytes)

    def _reduce(self, job: ReduceJob) -> None:
        reduction, matrix = job.reduction, job.matrix
        after = self._values.known(reduction.after) if reduction.after else None
        if reduction.takes_bits:
            stored = self._stored(matrix.source, job.span, read_rows)
            parts = [reduction.part(bits, after) for _, bits in stored]
        else:
            runs = self._blocks(matrix, matrix.granule[matrix.is_columnwise], job.span)
            parts = [reduction.part(block, after) for _, blocks in runs for _, block in blocks]
        self._values.add(job, combine(parts, reduction.combine))

    def _compute(self, job: ComputeJob) -> Part:
        derivation = job.derivation
        nbytes, measures = 0, []
        try:
            for start, found, measured in self._made(job):
                measures += measured
                nbytes += self._write(job, start, found)
        except NonFiniteError as error:
            raise self._refusal(job, str(error)) from error
        measure = combine_measures(derivation, measures)
        module = derivation.name if measure else ""
        return Part(job.targets[0].file, job.place, nbytes, module, measure)

    def _made(
        self, job: ComputeJob
    ) -> Iterator[tuple[int, Mapping[str, Bits], list[Sequence[float]]]]:
        """What is written at once: its first row or column, its outputs, and what was measured."""
        derivation, matrix = job.derivation, job.derivation.matrix
        if direct := derivation.direct:
            values = tuple(map(self._values.known, direct.needs))
            for start, stored in self._stored(matrix.source, job.span, read_rows):
                found, measured = direct.compute(stored, values)
                yield start, found, [measured]
            return
        values = tuple(map(self._values.known, derivation.needs))
        for start, blocks in self._blocks(matrix, derivation.granule, job.span):
            made = [derivation.compute(block, at, values) for at, block in blocks]
            found = _joined(derivation, [outputs for outputs, _ in made])
            yield start, found, [measured for _, measured in made]

    def _write(self, job: ComputeJob, start: int, found: Mapping[str, Bits]) -> int:
        nbytes = 0
        for target in job.targets:
            output = job.derivation.outputs[target.output]
            if output.is_whole and start:
                continue
            descriptor, bits = self._outputs[target.file].descriptor(), found[target.output]
            by_columns = job.derivation.matrix.is_columnwise and not output.is_whole
            write = write_columns if by_columns else write_rows
            place = job.derivation.place(output, start)
            with os_errors_of(target.file, "writing"):
                written = write(descriptor, target.offset, output.spec, place, bits)
            self.advance(written)
            nbytes += written
        return nbytes

    def _blocks(
        self, matrix: Matrix, granule: int, span: range
    ) -> Iterator[tuple[int, Iterator[tuple[int, Tensor]]]]:
        """What is read at once: its first row or column, and its blocks, each with its own.

        Columns are read in wide runs, but computed in blocks that stay in cache.
        """
        values = tuple(map(self._values.known, matrix.needs))
        if not matrix.is_columnwise:
            for start, stored in self._stored(matrix.source, span, read_rows):
                block = from_bits(stored, matrix.source.spec.dtype)
                yield start, iter([(start, matrix.block(block, start, values))])
            return
        rows = matrix.source.spec.shape[0]
        width = max(1, BLOCK_ELEMENTS // rows // granule) * granule
        for start, stored in self._stored(matrix.source, span, read_columns):
            block = from_bits(stored, matrix.source.spec.dtype)
            bands = enumerate(block.split(width, 1))  # type: ignore[no-untyped-call]
            places = ((start + i * width, band.contiguous()) for i, band in bands)
            yield start, ((at, matrix.block(band, at, values)) for at, band in places)

    def _stored(
        self, tensor: StoredTensor, span: range, read: Callable[..., Bits]
    ) -> Iterator[tuple[int, Bits]]:
        with self._reading(tensor.file) as source:
            for start in span:
                self.advance(0)
                stop = min(start + span.step, span.stop)
                with os_errors_of(tensor.file.name, "reading"):
                    bits = read(source, tensor, start, stop)
                yield start, bits

    @contextmanager
    def _reading(self, file: SourceFile) -> Iterator[int]:
        path = file.fetch(self.advance)
        with os_errors_of(file.name, "reading"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        except EOFError as error:
            raise CtcliError(
                f"{file.name}: it became shorter while it was being read.", _LEAVE_ALONE
            ) from error
        finally:
            os.close(descriptor)

    def _refusal(self, job: ComputeJob, hint: str) -> CtcliError:
        """The error for a weight with NaN or infinities: counts them all.

        Where it has none, what goes into it has; or else the result, which does not fit its dtype
        or was divided by zero.
        """
        import torch

        derivation, matrix = job.derivation, job.derivation.matrix
        source = matrix.source
        every = range(0, source.spec.shape[0], job.span.step)
        blocks = self._stored(source, every, read_rows)
        dtype = source.spec.dtype
        count = sum(int((~torch.isfinite(from_bits(b, dtype))).sum()) for _, b in blocks)
        # A bias that takes in a norm's is computed from the weight.
        reads_bias = [*derivation.outputs] == ["bias"] and source.spec.shape == matrix.shape
        leaf = "bias" if reads_bias else "weight"
        needs = derivation.direct.needs if derivation.direct else matrix.needs
        values = (torch.as_tensor(self._values.known(need)) for need in needs)
        if count:
            problem = f".{leaf}: {count} of its values are NaN or infinite."
        elif not all(bool(value.isfinite().all()) for value in values):
            problem = ": a norm or a bias that goes into it holds NaN or infinite values."
        else:
            dtypes = [output.spec.dtype for output in derivation.outputs.values()]
            limit = dtypes[0] if derivation.only_rounds else "F32"
            problem = f": the result is not finite, or too large for {limit}."
        return CtcliError(derivation.name + problem, hint)

    def advance(self, nbytes: int) -> None:
        """Note progress, from any thread; end the thread's work if the run ends."""
        if self._stop.is_set():
            raise Cancelled
        self._report(nbytes)
