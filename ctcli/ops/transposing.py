"""Transposing a block, in pieces that memory takes fast."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ctcli.ops.jit import kernel


@kernel
def transpose(x: NDArray[Any], out: NDArray[Any]) -> None:
    """Write x^T, for x [rows, columns] and out [columns, rows], both C-contiguous."""
    rows, columns = x.shape
    whole = rows // 8 * 8
    for i in range(0, whole, 8):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        e, f, g, h = x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(columns):
            line = out[j, i : i + 8]
            line[0], line[1], line[2], line[3] = a[j], b[j], c[j], d[j]
            line[4], line[5], line[6], line[7] = e[j], f[j], g[j], h[j]
    for i in range(whole, rows):
        for j in range(columns):
            out[j, i] = x[i, j]
