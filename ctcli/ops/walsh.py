"""The fast Walsh-Hadamard transform (Fino and Algazi 1976): products with Sylvester's matrix.

A butterfly replaces elements i and i + s by their sum and difference; one for every pair with
stride s = 1, 2, 4, ... n / 2 makes up Sylvester's matrix of n. Three strides are taken at a time,
in cache. Sums are added in one order whatever rows and columns a block has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy import uint64
from numpy.typing import NDArray

from ctcli.ops.jit import inlined, kernel

# Unsigned and constant, so that loops over neighbours become vectors.
_0, _1, _2, _3 = uint64(0), uint64(1), uint64(2), uint64(3)
_4, _5, _6, _7, _8 = uint64(4), uint64(5), uint64(6), uint64(7), uint64(8)
_16, _24, _32, _40, _48, _56, _64 = (uint64(8 * k) for k in range(2, 9))


class RowTransform(NamedTuple):
    """diag(first) K diag(last), K a Kronecker product of Sylvester's matrices and ones.

    Attributes:
        first: [n] float32 or float64; empty: there is nothing to do.
        groups: by Sylvester's matrix of 2**k, the smallest stride and 2**k times that, int64
            [groups, 2]; they may stand on the diagonal of K several times.
        last: [n]; empty: ones.
    """

    first: NDArray[Any]
    groups: NDArray[np.int64]
    last: NDArray[Any]


@kernel
def transform_rows(x: NDArray[Any], out: NDArray[Any], transform: RowTransform) -> None:
    """Multiply rows by a transform.

    Args:
        x: [rows, n] of the transform's dtype, C-contiguous.
        out: likewise; x itself will do.
        transform: the transform.
    """
    for i in range(x.shape[0]):
        source, line = x[i], out[i]
        for j in range(line.size):
            line[j] = source[j]
        transform_row(line, transform)


@inlined
def transform_row(line: NDArray[Any], transform: RowTransform) -> None:
    """Multiply a row [n] by a transform, in its place."""
    first, groups, last = transform.first, transform.groups, transform.last
    for j in range(line.size):
        line[j] *= first[j]
    for group in range(groups.shape[0]):
        _transform(line, groups[group, 0], groups[group, 1])
    if last.size:
        for j in range(line.size):
            line[j] *= last[j]


@kernel
def transform_columns(
    w: NDArray[Any],
    out: NDArray[Any],
    first: NDArray[Any],
    last: NDArray[Any],
    columns: int,
    tile: NDArray[Any],
) -> None:
    """Compute diag(last) (Sylvester (x) 1) diag(first) w[b] for each w[b] [m * after, columns].

    Args:
        w: [batch, m, after * columns] float32 or float64, C-contiguous.
        out: likewise; w itself will do.
        first: [n] of a multiple of m * after, which the batches take in turn; empty: ones.
        last: likewise.
        columns: as above.
        tile: scratch, [m * elements of each row that are transformed at once].
    """
    batch, m, across = w.shape
    after = across // columns
    width = tile.size // m
    for b in range(batch):
        for start in range(0, across, width):
            size = min(width, across - start)
            used = tile[: m * size]
            for k in range(m):
                row = (b * m + k) * after
                line = used[k * size : (k + 1) * size]
                _scaled(line, w[b, k, start : start + size], first, row, start, columns)
            _transform(used, size, m * size)
            for k in range(m):
                row = (b * m + k) * after
                line = used[k * size : (k + 1) * size]
                _scaled(out[b, k, start : start + size], line, last, row, start, columns)


@inlined
def _scaled(
    out: NDArray[Any],
    source: NDArray[Any],
    scales: NDArray[Any],
    row: int,
    start: int,
    columns: int,
) -> None:
    """A piece of some rows of `columns` elements, each times its scale; no scales: a copy.

    Args:
        out: [size].
        source: [size].
        scales: by row, in turn, or empty.
        row: of the first element that the rows have.
        start: the piece's first element in them.
        columns: elements of a row.
    """
    if not scales.size:
        for i in range(out.size):
            out[i] = source[i]
        return
    done = 0
    while done < out.size:
        which = (start + done) // columns
        end = min(out.size, (which + 1) * columns - start)
        scale = scales[(row + which) % scales.size]
        to, of = out[done:end], source[done:end]
        for i in range(to.size):
            to[i] = of[i] * scale
        done = end


@inlined
def _transform(line: NDArray[Any], stride: int, end: int) -> None:
    """Butterflies of all strides from `stride` on, doubled while below `end`."""
    if stride == 1 and end >= 8:
        _eights_of_neighbours(line)
        stride = 8
    if stride == 8 and end >= 64:
        _eights_of_vectors(line)
        stride = 64
    while stride * 8 <= end:
        for start in range(0, line.size, 8 * stride):
            _eights(line[start : start + 8 * stride], uint64(stride))
        stride *= 8
    if stride * 4 <= end:
        for start in range(0, line.size, 4 * stride):
            _fours(line[start : start + 4 * stride], uint64(stride))
        stride *= 4
    if stride * 2 <= end:
        for start in range(0, line.size, 2 * stride):
            _pairs(line[start : start + 2 * stride], uint64(stride))


@inlined
def _butterflies(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Sylvester's matrix of 8 times a vector."""
    a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
    a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
    return a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h


@inlined
def _eights_of_neighbours(x: NDArray[Any]) -> None:
    """Strides 1, 2 and 4."""
    for i in range(_0, uint64(x.size), _8):
        a, b, c, d, e, f, g, h = _butterflies(
            x[i], x[i + _1], x[i + _2], x[i + _3], x[i + _4], x[i + _5], x[i + _6], x[i + _7]
        )
        x[i], x[i + _1], x[i + _2], x[i + _3] = a, b, c, d
        x[i + _4], x[i + _5], x[i + _6], x[i + _7] = e, f, g, h


@inlined
def _eights_of_vectors(x: NDArray[Any]) -> None:
    """Strides 8, 16 and 32."""
    for start in range(_0, uint64(x.size), _64):
        for offset in range(_8):
            i = start + offset
            a, b, c, d, e, f, g, h = _butterflies(
                x[i], x[i + _8], x[i + _16], x[i + _24], x[i + _32], x[i + _40], x[i + _48],
                x[i + _56],
            )  # fmt: skip
            x[i], x[i + _8], x[i + _16], x[i + _24] = a, b, c, d
            x[i + _32], x[i + _40], x[i + _48], x[i + _56] = e, f, g, h


@inlined
def _eights(x: NDArray[Any], s: uint64) -> None:
    """Strides s, 2 s and 4 s of [8 s] elements."""
    for i in range(s):
        a, b, c, d, e, f, g, h = _butterflies(
            x[i], x[i + s], x[i + _2 * s], x[i + _3 * s], x[i + _4 * s], x[i + _5 * s],
            x[i + _6 * s], x[i + _7 * s],
        )  # fmt: skip
        x[i], x[i + s], x[i + _2 * s], x[i + _3 * s] = a, b, c, d
        x[i + _4 * s], x[i + _5 * s], x[i + _6 * s], x[i + _7 * s] = e, f, g, h


@inlined
def _fours(x: NDArray[Any], s: uint64) -> None:
    """Strides s and 2 s of [4 s] elements."""
    for i in range(s):
        a, b, c, d = x[i], x[i + s], x[i + _2 * s], x[i + _3 * s]
        a, b, c, d = a + b, a - b, c + d, c - d
        x[i], x[i + s], x[i + _2 * s], x[i + _3 * s] = a + c, b + d, a - c, b - d


@inlined
def _pairs(x: NDArray[Any], s: uint64) -> None:
    """Stride s of [2 s] elements."""
    for i in range(s):
        a, b = x[i], x[i + s]
        x[i], x[i + s] = a + b, a - b
