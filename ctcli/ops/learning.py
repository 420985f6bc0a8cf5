"""Rotations learned from weights alone: what makes the largest weight of each group small.

R = R0 (I + S)^-1 (I - S), S antisymmetric (Cayley 1846), starts at R0 and moves by Adam (Kingma and
Ba 2015). The loss is the mean over rows x and groups of y = x R of (sum |y|^8)^(1/4), a smooth
square of the largest magnitude. All arithmetic is that of `ops.exact`, so that every machine learns
the same matrix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import frexp
from typing import TYPE_CHECKING

import numpy as np

from ctcli.ops.exact import (
    BAND,
    PIECE,
    bits_for,
    in_pieces,
    inverse,
    of_grids,
    on_grid,
    precise_product,
    row_sums,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from ctcli.ops.bits import Floats

    Indices = NDArray[np.int64]

ROWS_A_STEP = 4096
_RATE, _MEMORY, _SQUARES, _LEAST = 3e-3, 0.9, 0.999, 1e-12
_ROW_BITS = 23  # rows are held as float32
_SLAB, _LEAST_ROWS = 2**21, 1024  # elements, and rows, whose derivatives are held at once
_TEMPORARIES = 6  # of bands
_MATRICES = 7  # of [n, n] float64 that there are at once
_ORDER = 2**18  # bytes of which rows are taken, and of what waits for threads
_POLISHING = 2  # each doubles the digits to which Q Q^T = I


@dataclass(frozen=True)
class Learner:
    """Learns one rotation.

    Attributes:
        group: neighbouring coordinates that share a scale; divides the size.
        steps: of Adam.
        seed: of the choice of rows.
    """

    group: int
    steps: int
    seed: int

    def learn(self, rows: Floats, advance: Callable[[int], None]) -> Floats:
        """Q [n, n] float64, orthogonal to about 1e-12.

        Args:
            rows: times R0, [m, n] float32; there may be none.
            advance: told of the bytes of each step's rows.
        """
        with _threads() as threads:
            return _polished(self._learned(rows, advance, threads), threads)

    def _learned(self, rows: Floats, advance: Callable[[int], None], threads: Executor) -> Floats:
        """Q before its last digits are mended."""
        descent = _Descent(rows.shape[1])
        draws = np.random.RandomState(self.seed & 0xFFFFFFFF)
        for _ in range(self.steps if len(rows) else 0):
            chosen = np.sort(draws.permutation(len(rows))[:ROWS_A_STEP])
            half = _half_turn(descent.skew, threads)
            by_q = self._gradient(rows, chosen, _turn(half), threads)
            descent.move(_carried(by_q, half, threads), threads)
            advance(chosen.size * rows.shape[1] * rows.itemsize)
        return _turn(_half_turn(descent.skew, threads))

    def _gradient(self, rows: Floats, chosen: Indices, q: Floats, threads: Executor) -> Floats:
        """The derivative of the loss by each element of Q, [n, n], of the chosen rows.

        They are taken in slabs, whose parts are added up in order. Q is put on a grid.
        """
        n, result = rows.shape[1], np.zeros_like(q)
        slab, band = _slab(n), rows_of(BAND, n)
        bits = bits_for(max(n, slab))
        on_grid(q, bits, threads, q)

        def add(x: Floats) -> None:
            y = of_grids(on_grid(x, bits, threads, x), q, threads)
            in_pieces(lambda piece: differentiated(y[piece], self.group), len(y), band, threads)
            of_grids(x.T, on_grid(y, bits, threads, y), threads, result)

        for at in range(0, len(chosen), slab):
            add(rows[chosen[at : at + slab]].astype(np.float64))
        result /= len(chosen) * (n // self.group)
        return result


class _Descent:
    """Where Adam is: S [n, n], and the running means of its slopes and of their squares."""

    def __init__(self, n: int) -> None:
        self.skew, self._mean, self._squares = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
        self._decay, self._decay_of_squares = 1.0, 1.0

    def move(self, moved: Floats, threads: Executor) -> None:
        """A step; the slope is what a matrix differs from its transpose by."""
        self._decay *= _MEMORY
        self._decay_of_squares *= _SQUARES

        def descend(piece: slice) -> None:
            mean, squares = self._mean[piece], self._squares[piece]
            slope = moved[:, piece].T - moved[piece]
            mean[:] = _MEMORY * mean + (1 - _MEMORY) * slope
            squares[:] = _SQUARES * squares + (1 - _SQUARES) * slope * slope
            scale = np.sqrt(squares / (1 - self._decay_of_squares)) + _LEAST
            self.skew[piece] -= _RATE * (mean / (1 - self._decay)) / scale

        in_pieces(descend, len(moved), rows_of(BAND, len(moved)), threads)


def differentiated(y: Floats, group: int) -> float:
    """Sums (sum |y|^8)^(1/4) over the groups of rows [m, n]; y becomes its derivative by them.

    With s the sum of eighth powers, that of s^(1/4) is 2 y^7 s^(-3/4).
    """
    grouped = y.reshape(len(y), -1, group)
    second = grouped * grouped
    fourth = second * second
    root = np.sqrt(np.sqrt(row_sums(fourth * fourth)))
    cubes = root * root * root
    weights = np.divide(2.0, cubes, out=np.zeros_like(cubes), where=cubes > 0)
    grouped *= fourth * second * weights[..., None]
    return float(root.sum())


def normalise(rows: Floats) -> Floats:
    """Rows [m, n] float32 become about as large as 1, by a power of two, and lie on a grid."""
    band = rows_of(BAND, rows.shape[1])
    squares = sum(in_pieces(lambda piece: _energy(rows[piece]), len(rows), band, None))
    if squares > 0:
        np.ldexp(rows, -(frexp(squares / rows.size)[1] // 2), out=rows)
    return on_grid(rows, _ROW_BITS, None, rows)


def group_of(size: int, largest: int = 128) -> int:
    """The largest number of neighbours that divides a size, up to 128."""
    return next(n for n in range(min(size, largest), 0, -1) if size % n == 0)


def learning_bytes(rows: int, size: int) -> int:
    """What learning holds in memory, at most: the rows, matrices, a slab, and what threads do."""
    cores = os.cpu_count() or 1
    own = max(size * min(cores * PIECE, size), cores * _TEMPORARIES * max(BAND, size))
    floats = 8 * (_MATRICES * size * size + 2 * size * min(rows, _slab(size)) + own)
    return 4 * size * rows + floats + _ORDER


def _slab(size: int) -> int:
    return min(ROWS_A_STEP, max(_LEAST_ROWS, rows_of(_SLAB, size)))


def _energy(rows: Floats) -> float:
    wide = rows.astype(np.float64)
    return float(row_sums(row_sums(wide * wide)))


def _half_turn(skew: Floats, threads: Executor) -> Floats:
    """The inverse of I + S, [n, n]."""
    half = skew.copy()
    half.flat[:: len(half) + 1] += 1
    return inverse(half, threads)


def _turn(half: Floats) -> Floats:
    """Q = 2 (I + S)^-1 - I."""
    q: Floats = 2 * half
    q.flat[:: len(q) + 1] -= 1
    return q


def _carried(by_q: Floats, half: Floats, threads: Executor) -> Floats:
    """H^T D H^T for the derivative D by Q and H = (I + S)^-1; both are put on grids."""
    bits = bits_for(len(half))
    turned = on_grid(half, bits, threads, half).T
    first = of_grids(turned, on_grid(by_q, bits, threads, by_q), threads)
    return of_grids(on_grid(first, bits, threads, first), turned, threads)


def _polished(q: Floats, threads: Executor) -> Floats:
    """Q (3 I - Q^T Q) / 2, some times (Bjorck and Bowie 1971): nearer to an orthogonal matrix."""
    for _ in range(_POLISHING):
        square = precise_product(q.T, q, threads)
        moved = precise_product(q, square, threads)
        q *= 1.5
        moved *= 0.5
        q -= moved
    return q


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """One thread for each core; an interrupt does not wait for what was not begun."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
