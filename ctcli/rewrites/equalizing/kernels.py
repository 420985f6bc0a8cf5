"""What equalizing computes: sums of squares, factors of columns and rows, scaled blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.lazy.nodes import ROWS, NonFiniteError, Where
from ctcli.models.architecture import HeadRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctcli.lazy.nodes import Blocks

    Vector = NDArray[np.float64]

HINT = "Repair the checkpoint, or leave equalize out."
_LARGEST = 64.0
"""Factors lie between this and its inverse: rows of up and v stay within a float16."""
_STEPS = 2.0**12
"""Factors have 12 significant bits: their products with 16-bit floats are exact in float32."""


@dataclass(frozen=True)
class RowSums:
    """sum_j W_ij^2 c_j over some columns: float64 [rows], for `sum`."""

    tag: str

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        from ctcli.ops.equalizing import row_sums

        factors = _some(blocks.get("factors"), where.columns)
        return {"value": row_sums(blocks["weight"], self.tag, factors)}, ()


@dataclass(frozen=True)
class ColumnSums:
    """What each column adds up to once rows have equal sums: float64 [columns], for `sum`."""

    tag: str

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: the weight holds NaN or infinities.
        """
        import numpy as np

        from ctcli.ops.equalizing import column_sums

        factors = _some(blocks.get("factors"), where.columns)
        found = column_sums(blocks["weight"], self.tag, factors, blocks.get("rows"))
        if not np.isfinite(found).all():
            raise NonFiniteError(HINT)
        if where.axis == ROWS:
            return {"value": found}, ()
        sums = np.zeros(where.shape[1])
        sums[where.columns.start : where.columns.stop] = found
        return {"value": sums}, ()


@dataclass(frozen=True)
class Balance:
    """c_j = 1 / the sum of column j over all linears: float64 [columns]; 1 where that is zero."""

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        sums = _total(blocks)
        return {"value": 1 / _nonzero(sums)}, ()


@dataclass(frozen=True)
class Factors:
    """d = sqrt(c) over its geometric mean: float64 [columns]; 1 for columns of zeros.

    Attributes:
        repeats: so many neighbouring heads of columns get the same factors, their geometric mean.
        size: columns of a head.
    """

    repeats: int = 1
    size: int = 1

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        import numpy as np

        sums = _total(blocks)
        there = sums > 0
        exponents = np.where(there, np.log2(_nonzero(sums)) / -2, 0.0)
        if self.repeats > 1:
            heads = exponents.reshape(-1, self.repeats, self.size)
            counts = there.reshape(heads.shape).sum(1, keepdims=True)
            means = heads.sum(1, keepdims=True) / np.maximum(counts, 1)
            exponents = np.broadcast_to(means, heads.shape).reshape(-1)
            there = np.broadcast_to(counts > 0, heads.shape).reshape(-1)
        mean = float(exponents[there].mean()) if there.any() else 0.0
        limit = math.log2(_LARGEST)
        found = np.exp2(np.clip(exponents - mean, -limit, limit))
        return {"value": np.where(there, _rounded(found), 1.0)}, ()


@dataclass(frozen=True)
class Divide:
    """A norm's gain divided by factors, as it is stored and rounded to its dtype: float64 [n].

    It stays as it is where it, or the result, is zero, and where the result is too large.

    Attributes:
        tag: safetensors tag of the stored gain.
        offset: what the model adds to it.
    """

    tag: str
    offset: float

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: the gain holds NaN or infinities.
        """
        import numpy as np

        from ctcli.ops.bits import from_floats, to_floats

        stored: Vector = blocks["gain"]
        if not np.isfinite(stored).all():
            raise NonFiniteError(HINT)
        divided = (stored + self.offset) / blocks["factors"] - self.offset
        with np.errstate(over="ignore"):
            found = to_floats(from_floats(divided, self.tag), self.tag, np.float64)
        gains = found + self.offset
        stays = (stored + self.offset == 0) | (gains == 0) | ~np.isfinite(gains)
        return {"value": np.where(stays, stored, found)}, ()


@dataclass(frozen=True)
class Ratio:
    """What the columns behind a norm are multiplied by: its gain over the new one, float64 [n].

    Attributes:
        offset: what the model adds to a stored gain.
    """

    offset: float

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        import numpy as np

        old, new = blocks["gain"] + self.offset, blocks["new"] + self.offset
        return {"value": np.where(old == 0, 1.0, old / np.where(old == 0, 1.0, new))}, ()


@dataclass(frozen=True)
class OfRows:
    """What each row of a linear is multiplied by: 1 / d for the rows of heads, float64 [rows].

    Attributes:
        heads: the rows that columns stand for, head by head.
        repeats: heads of columns for each head of rows.
        rows: of the linear.
    """

    heads: HeadRows
    repeats: int
    rows: int

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        import numpy as np

        heads = self.heads
        factors = blocks["factors"].reshape(heads.heads, self.repeats, heads.size)[:, 0]
        found = np.ones(self.rows)
        for head in range(heads.heads):
            found[heads.of(head)] = 1 / factors[head]
        return {"value": found}, ()


@dataclass(frozen=True)
class Generated:
    """A norm's new gain, as a matrix of one row."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        return {"weight": blocks["new"][None, where.columns.start : where.columns.stop]}, ()


@dataclass(frozen=True)
class Scale:
    """Multiply columns and rows by factors, and round.

    Attributes:
        leaf: the input's name, and the output's.
        tag: safetensors tag of the blocks.
        target: of the result.
        divides: whether columns are divided instead.
        in_float32: whether to compute in float32 rather than in float64.
        refuses: whether a result that is not finite is an error.
    """

    leaf: str
    tag: str
    target: str
    divides: bool
    in_float32: bool
    refuses: bool

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: what was read is not finite, or the result is too large for the dtype.
        """
        from ctcli.ops.edits import edited

        result, is_finite = edited(
            blocks[self.leaf],
            self.tag,
            self.target,
            gain=_some(blocks.get("factors"), where.columns),
            divides=self.divides,
            by_row=_some(blocks.get("rows"), where.rows),
            in_float32=self.in_float32,
        )
        if self.refuses and not is_finite:
            raise NonFiniteError(HINT)
        is_float = self.target in ("F32", "F64")
        return {self.leaf: result.view(f"f{result.itemsize}") if is_float else result}, ()


def _some(vector: Vector | None, numbers: range) -> Vector | None:
    return None if vector is None else vector[numbers.start : numbers.stop]


def _total(blocks: Blocks) -> Vector:
    """The sums of all linears, in their order."""
    parts = [*blocks.values()]
    found: Vector = sum(parts[1:], parts[0])
    return found


def _nonzero(sums: Vector) -> Vector:
    import numpy as np

    return np.where(sums > 0, sums, 1.0)


def _rounded(factors: Vector) -> Vector:
    """With 12 significant bits."""
    import numpy as np

    mantissas, exponents = np.frexp(factors)
    return np.ldexp(np.rint(mantissas * _STEPS) / _STEPS, exponents)
