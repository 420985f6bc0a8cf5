"""Subtracting the means of rows and of columns, which are summed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcli.ops.jit import kernel

LANES = 16
WIDTH = 256
"""Columns at a time."""


@kernel
def centre_rows(x: NDArray[Any], out: NDArray[Any], sums: NDArray[np.float64]) -> None:
    """Subtract the mean of each row: `LANES` sums, which are added up in pairs at last."""
    rows, columns = x.shape
    whole = columns // LANES * LANES
    for row in range(rows):
        source, line = x[row], out[row]
        sums[:] = 0.0
        for first in range(0, whole, LANES):
            some = source[first : first + LANES]
            for i in range(LANES):
                sums[i] += some[i]
        for i in range(whole, columns):
            sums[i - whole] += source[i]
        half = LANES
        while half > 1:
            half //= 2
            for i in range(half):
                sums[i] += sums[i + half]
        mean = sums[0] / columns
        for i in range(columns):
            line[i] = source[i] - mean


@kernel
def centre_columns(w: NDArray[Any], out: NDArray[Any], means: NDArray[np.float64]) -> None:
    """Subtract the mean of each column, summed from the first row to the last."""
    rows, columns = w.shape
    for start in range(0, columns, WIDTH):
        stop = min(columns, start + WIDTH)
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
