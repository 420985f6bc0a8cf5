"""Tensors that are not quantized, beside what rewrites compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ctcli.engine.reductions import combine
from ctcli.lazy.tensors import DerivedTensor, Matrix, Reduction, StoredTensor, to_bits
from ctcli.verifying.scanning import Extent, Reader, Sight
from ctcli.verifying.values import NOT_FINITE

if TYPE_CHECKING:
    from torch import Tensor

Needed = tuple["Tensor", ...]


class Values:
    """The values that computed tensors need, each computed once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._known: dict[Reduction, Tensor] = {}

    def of(self, needs: tuple[Reduction, ...]) -> Needed:
        """The values of some reductions."""
        return tuple(map(self._value, needs))

    def _value(self, reduction: Reduction) -> Tensor:
        if reduction not in self._known:
            after = self._value(reduction.after) if reduction.after else None
            parts = [
                reduction.part(block, after)
                for matrix in reduction.inputs
                for block in self._blocks(matrix)
            ]
            self._known[reduction] = reduction.finish(combine(parts, reduction.combine), after)
        return self._known[reduction]

    def _blocks(self, matrix: Matrix) -> list[Tensor]:
        extent, values = extent_of(matrix), self.of(matrix.needs)
        return [
            matrix.block(
                self._reader.read(
                    matrix.source,
                    start,
                    min(start + run.step, run.stop),
                    extent.columnwise,
                ),
                start,
                values,
            )
            for run in extent.runs()
            for start in run
        ]


def extent_of(matrix: Matrix, granule: int = 1) -> Extent:
    """How a matrix is cut into blocks."""
    axis = int(matrix.is_columnwise)
    shape = matrix.source.spec.shape
    together = max(granule, matrix.granule[axis])
    return Extent(shape[axis], shape[1 - axis], together, bool(axis))


@dataclass(frozen=True)
class ComputedScan:
    """A tensor that is not quantized, beside what a rewrite computes.

    Attributes:
        name: its name.
        tensor: where it lies.
        expected: what it should be.
        values: what that needs.
    """

    name: str
    tensor: StoredTensor
    expected: DerivedTensor
    values: Needed

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.tensor.spec.nbytes + self.expected.derivation.matrix.source.spec.nbytes

    @property
    def extent(self) -> Extent:
        """Rows (columns) of what it is computed from."""
        derivation = self.expected.derivation
        return extent_of(derivation.matrix, derivation.granule)

    def look(self, reader: Reader, start: int, stop: int, sight: Sight) -> None:
        """Look at rows (columns) from `start` to `stop`."""
        from ctcli.ops.comparing import count_different, rounding_errors

        derivation, columnwise = self.expected.derivation, self.extent.columnwise
        matrix = derivation.matrix
        count = len(matrix.needs)
        stored = reader.read(matrix.source, start, stop, columnwise)
        block = matrix.block(stored, start, self.values[:count])
        if not derivation.only_rounds:
            computed, _ = derivation.compute(block, start, self.values[count:])
            expected = computed[self.expected.output]
            first = derivation.place(derivation.outputs[self.expected.output], start)
            found = reader.read(self.tensor, first, first + len(expected), columnwise)
            differing = count_different(to_bits(found), to_bits(expected.view(found.shape)))
            sight.fault(self.name, "values differ from what the recipe computes", differing)
            return
        whole = StoredTensor(
            replace(self.tensor.spec, shape=matrix.shape), self.tensor.file, self.tensor.start
        )
        found = reader.read(whole, start, stop, columnwise)
        errors, nonfinite = rounding_errors(
            to_bits(found), self.tensor.spec.dtype, block.double().numpy()
        )
        sight.fault(self.name, NOT_FINITE, nonfinite)
        sight.errors.append((0, start, errors) if columnwise else (start, 0, errors))
