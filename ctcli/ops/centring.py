"""Subtracting the mean over the residual stream, as a map of the same kind as a rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ctcli.ops.bits import Floats
    from ctcli.ops.kronecker import Array
    from ctcli.ops.walsh import RowTransform


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

    def resized(self, size: int) -> Centring:
        """The mean over so many coordinates."""
        return Centring(size)

    def of_rows(self, dtype: DTypeLike) -> RowTransform | None:  # noqa: ARG002 (maps are alike)
        """It is no product with Sylvester's matrices."""
        return None

    def apply(self, x: Array, out: Floats | None = None) -> Array:
        """X M for x [rows, n]; `out`, C-contiguous, takes an array's result and may be x."""
        if not isinstance(x, np.ndarray):
            return x - x.mean(1, keepdim=True)
        from ctcli.ops.means import LANES, centre_rows  # loads kernels, which plans do without

        result = np.empty(x.shape, x.dtype) if out is None else out
        centre_rows(np.ascontiguousarray(x), result, np.empty(LANES))
        return result

    def apply_left(self, w: Array, out: Floats | None = None) -> Array:
        """M^T w for w [n, columns]; `out`, C-contiguous, takes an array's result and may be w."""
        if not isinstance(w, np.ndarray):
            return w - w.mean(0, keepdim=True)
        from ctcli.ops.means import WIDTH, centre_columns

        result = np.empty(w.shape, w.dtype) if out is None else out
        centre_columns(np.ascontiguousarray(w), result, np.empty(WIDTH))
        return result
