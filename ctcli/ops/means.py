"""Subtracting the means of rows and of columns, which are summed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcli.ops.jit import kernel

_LANES = 16
_WIDTH = 256
"""Elements of each row of a tile."""


@kernel
def centre_rows(x: NDArray[Any], out: NDArray[Any]) -> None:
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
def centre_columns(w: NDArray[Any], out: NDArray[Any]) -> None:
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
