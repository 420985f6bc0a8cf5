"""Products with small square matrices along one axis of a block, tile by tile, in cache.

A Hadamard matrix takes a quarter of the work: four rows have only eight sums, but for the sign,
and each row of the result takes one of them from every four rows (Arlazarov et al. 1970 do so for
Boolean matrices). Sums are added in one order whatever rows and columns a block has, which BLAS
does not promise: its float32 products depend on where in a block a column lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctcli.ops.jit import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ctcli.ops.bits import Floats

_TOGETHER = 4
"""Terms are filled up to a multiple of so many."""
_WIDTH = 512
"""Elements of each row of a tile."""


@dataclass(frozen=True, eq=False)
class Product:
    """F^T x as a sum of terms: of rows of x, or of sums of four of them.

    Attributes:
        picks: which rows or sums make up each row of the result, [f, terms].
        weights: what each is multiplied by, [f, terms].
        by_fours: whether they are sums of four rows, times +1 or -1 each: eight for rows 4 i to
            4 i + 3, where bits 0, 1 and 2 of the number say that the second, third and fourth are
            subtracted.
    """

    picks: NDArray[np.int64]
    weights: Floats
    by_fours: bool

    def columns(self, x: Floats, out: Floats) -> None:
        """Multiply each x[b] of x [batch, f, width], C-contiguous; `out` may be x."""
        width = min(_WIDTH, x.shape[2])
        f = len(self.picks)
        tile = np.empty((2 * f if self.by_fours else f) * width, x.dtype)
        _columns(x, out, self.picks, self.weights, self.by_fours, tile)


def product_of(factor: Floats, dtype: DTypeLike) -> Product:
    """How F^T is applied, F [f, f] float64, to arrays of a dtype."""
    f = len(factor)
    size = np.abs(factor[0, 0])
    by_fours = f % 4 == 0 and bool((np.abs(np.abs(factor) - size) <= 1e-15).all())
    weights = factor.T
    picks = np.broadcast_to(np.arange(f), (f, f))
    if by_fours:
        fours = weights.reshape(f, f // 4, 4)
        is_subtracted = fours[:, :, 1:] * fours[:, :, :1] < 0
        picks = 8 * np.arange(f // 4) + is_subtracted @ np.array([1, 2, 4])
        weights = fours[:, :, 0]
    missing = ((0, 0), (0, -weights.shape[1] % _TOGETHER))
    return Product(
        np.pad(picks, missing).astype(np.int64),
        np.pad(weights, missing).astype(dtype),
        by_fours,
    )


@kernel
def _columns(
    x: NDArray[Any],
    out: NDArray[Any],
    picks: NDArray[np.int64],
    weights: NDArray[Any],
    by_fours: bool,
    tile: NDArray[Any],
) -> None:
    """See `Product`."""
    batch, f, across = x.shape
    terms = picks.shape[1]
    width = tile.size // (2 * f if by_fours else f)
    for b in range(batch):
        for start in range(0, across, width):
            size = min(width, across - start)
            stop = start + size
            if by_fours:
                _gather_sums(tile, x[b], start, stop)
            else:
                _gather(tile, x[b], start, stop)
            for k in range(f):
                line = out[b, k, start:stop]
                line[:] = 0
            for first in range(0, terms - 7, 8):
                for k in range(f):
                    last = first + 8
                    _add_eight(
                        out[b, k, start:stop], tile, picks[k, first:last], weights[k, first:last]
                    )
            if terms % 8:
                last = terms - 4
                for k in range(f):
                    _add_four(out[b, k, start:stop], tile, picks[k, last:], weights[k, last:])


@inlined
def _gather(tile: NDArray[Any], x: NDArray[Any], start: int, stop: int) -> None:
    """Put a piece of each row of x one behind the other."""
    size = stop - start
    for i in range(x.shape[0]):
        line, source = tile[i * size : (i + 1) * size], x[i, start:stop]
        for j in range(size):
            line[j] = source[j]


@inlined
def _gather_sums(tile: NDArray[Any], x: NDArray[Any], start: int, stop: int) -> None:
    """Put the sums of a piece of every four rows of x one behind the other."""
    size = stop - start
    for i in range(0, x.shape[0], 4):
        _sums_of_four(
            tile[2 * i * size : (2 * i + 8) * size],
            x[i, start:stop],
            x[i + 1, start:stop],
            x[i + 2, start:stop],
            x[i + 3, start:stop],
        )


@inlined
def _sums_of_four(
    sums: NDArray[Any], a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], d: NDArray[Any]
) -> None:
    """The sums a +- b +- c +- d, [8 * size], in the order of `Product`."""
    n = a.size
    s0, s1, s2, s3 = sums[:n], sums[n : 2 * n], sums[2 * n : 3 * n], sums[3 * n : 4 * n]
    s4, s5 = sums[4 * n : 5 * n], sums[5 * n : 6 * n]
    s6, s7 = sums[6 * n : 7 * n], sums[7 * n : 8 * n]
    for i in range(n):
        p, q = a[i] + b[i], a[i] - b[i]
        r, s = c[i] + d[i], c[i] - d[i]
        s0[i], s1[i], s2[i], s3[i] = p + r, q + r, p - s, q - s
        s4[i], s5[i], s6[i], s7[i] = p + s, q + s, p - r, q - r


@inlined
def _add_eight(
    out: NDArray[Any], tile: NDArray[Any], picks: NDArray[np.int64], weights: NDArray[Any]
) -> None:
    """Add eight rows of a tile, each times its weight."""
    n = out.size
    a, b = tile[picks[0] * n :], tile[picks[1] * n :]
    c, d = tile[picks[2] * n :], tile[picks[3] * n :]
    e, f = tile[picks[4] * n :], tile[picks[5] * n :]
    g, h = tile[picks[6] * n :], tile[picks[7] * n :]
    u, v, w, x = weights[0], weights[1], weights[2], weights[3]
    p, q, r, s = weights[4], weights[5], weights[6], weights[7]
    for i in range(n):
        low = (u * a[i] + v * b[i]) + (w * c[i] + x * d[i])
        high = (p * e[i] + q * f[i]) + (r * g[i] + s * h[i])
        out[i] += low + high


@inlined
def _add_four(
    out: NDArray[Any], tile: NDArray[Any], picks: NDArray[np.int64], weights: NDArray[Any]
) -> None:
    """Add four rows of a tile, each times its weight."""
    n = out.size
    a, b = tile[picks[0] * n :], tile[picks[1] * n :]
    c, d = tile[picks[2] * n :], tile[picks[3] * n :]
    u, v, w, x = weights[0], weights[1], weights[2], weights[3]
    for i in range(n):
        out[i] += (u * a[i] + v * b[i]) + (w * c[i] + x * d[i])
