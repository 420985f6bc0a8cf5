"""Subtracting the mean over the residual stream, as a map of the same kind as a rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctcli.ops.jit import kernel

if TYPE_CHECKING:
    from ctcli.ops.bits import Floats
    from ctcli.ops.kronecker import Array

_LANES = 16
_WIDTH = 256


@dataclass(frozen=True)
class Centring:
    """M = I - 1 1^T / n: what LayerNorm does first, so that doing it before changes nothing.

    Means of arrays are summed in float64, in an order of their own for each row and column.

    Attributes:
        size: n.
    """

    size: int

    @property
    def block_size(self) -> int:
        """Coordinates that are mixed."""
        return self.size

    def apply(self, x: Array, out: Floats | None = None) -> Array:
        """X M for x [rows, n]; `out`, C-contiguous, takes an array's result and may be x."""
        if not isinstance(x, np.ndarray):
            return x - x.mean(1, keepdim=True)
        result = np.empty(x.shape, x.dtype) if out is None else out
        _centre_rows(np.ascontiguousarray(x), result)
        return result

    def apply_left(self, w: Array, out: Floats | None = None) -> Array:
        """M^T w for w [n, columns]; `out`, C-contiguous, takes an array's result and may be w."""
        if not isinstance(w, np.ndarray):
            return w - w.mean(0, keepdim=True)
        result = np.empty(w.shape, w.dtype) if out is None else out
        _centre_columns(np.ascontiguousarray(w), result)
        return result


@kernel
def _centre_rows(x: NDArray[Any], out: NDArray[Any]) -> None:
    """Subtract the mean of each row: sixteen sums, which are added up in pairs at last."""
    rows, columns = x.shape
    sums = np.empty(_LANES, np.float64)
    whole = columns // _LANES * _LANES
    for row in range(rows):
        source, line = x[row], out[row]
        sums[:] = 0.0
        for first in range(0, whole, _LANES):
            some = source[first : first + _LANES]
            for i in range(_LANES):
                sums[i] += some[i]
        for i in range(whole, columns):
            sums[i - whole] += source[i]
        half = _LANES
        while half > 1:
            half //= 2
            for i in range(half):
                sums[i] += sums[i + half]
        mean = sums[0] / columns
        for i in range(columns):
            line[i] = source[i] - mean


@kernel
def _centre_columns(w: NDArray[Any], out: NDArray[Any]) -> None:
    """Subtract the mean of each column, summed from the first row to the last."""
    rows, columns = w.shape
    means = np.empty(_WIDTH, np.float64)
    for start in range(0, columns, _WIDTH):
        stop = min(columns, start + _WIDTH)
        mean = means[: stop - start]
        mean[:] = 0.0
        for row in range(rows):
            source = w[row, start:stop]
            for i in range(mean.size):
                mean[i] += source[i]
        for i in range(mean.size):
            mean[i] /= rows
        for row in range(rows):
            source, line = w[row, start:stop], out[row, start:stop]
            for i in range(mean.size):
                line[i] = source[i] - mean[i]
