"""Rotations learned from weights alone: what makes the largest weight of each group small.

R = R0 (I + S)^-1 (I - S), S antisymmetric (Cayley 1846), starts at R0 and moves by Adam (Kingma and
Ba 2015). The loss is the mean over groups of (sum |y|^8)^(1/4), a smooth square of the largest
magnitude. A weight W that reads what is rotated becomes W R: groups are neighbours in its rows. One
that writes it becomes R^T W: groups are neighbours in its rows too, each in as many columns. All
arithmetic is that of `ops.exact`, so that every machine learns the same matrix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import frexp, gcd
from typing import TYPE_CHECKING

import numpy as np

from ctcli.ops.bits import to_floats
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

    from ctcli.ops.bits import Bits, Floats

    Halves = NDArray[np.float16]
    Indices = NDArray[np.int64]

ROWS_A_STEP = 4096
_RATE, _MEMORY, _SQUARES, _LEAST = 3e-3, 0.9, 0.999, 1e-12
_LARGEST = 60_000.0  # that FP16 holds
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

    def learn(self, rows: Halves, columns: Halves, advance: Callable[[int], None]) -> Floats:
        """Q [n, n] float64, orthogonal to about 1e-12.

        Args:
            rows: of weights that read, times R0, [m, n] float16; there may be none.
            columns: of weights that write, likewise, [k * group, n]: neighbours in groups.
            advance: told of the bytes of each step's rows and columns.
        """
        with _threads() as threads:
            return _polished(self._learned(rows, columns, advance, threads), threads)

    def _learned(
        self, rows: Halves, columns: Halves, advance: Callable[[int], None], threads: Executor
    ) -> Floats:
        """Q before its last digits are mended."""
        n, every = rows.shape[1], len(rows) + len(columns)
        descent, draws = _Descent(n), np.random.RandomState(self.seed & 0xFFFFFFFF)
        blocks = columns.reshape(-1, self.group, n)
        some_blocks = ROWS_A_STEP * len(columns) // max(1, every) // self.group
        some_rows = ROWS_A_STEP - some_blocks * self.group
        for _ in range(self.steps if every else 0):
            half = _half_turn(descent.skew, threads)
            gradient = _Gradient(_turn(half), self.group, threads)
            for at in _slabs(_drawn(draws, len(rows), some_rows), gradient.slab):
                gradient.add(rows[at])
            for at in _slabs(_drawn(draws, len(blocks), some_blocks), gradient.slab // self.group):
                gradient.add(blocks[at].reshape(-1, n), of_columns=True)
            descent.move(_carried(gradient.mean(), half, threads), threads)
            advance(gradient.rows * n * rows.itemsize)
        return _turn(_half_turn(descent.skew, threads))


class _Gradient:
    """The derivative of the loss by each element of Q, [n, n], from slabs that are added in order.

    Args:
        q: Q, which is put on a grid.
        group: neighbours that share a scale.
        threads: what goes over the rows.
    """

    def __init__(self, q: Floats, group: int, threads: Executor) -> None:
        self.slab = max(_slab(len(q)), group)
        self.rows = 0
        self._bits = bits_for(max(len(q), self.slab))
        self._q = on_grid(q, self._bits, threads, q)
        self._group, self._threads = group, threads
        self._sum = np.zeros_like(q)

    def add(self, rows: Halves, of_columns: bool = False) -> None:
        """Of some rows; or of columns, whose groups go across them."""
        x, bits, threads = rows.astype(np.float64), self._bits, self._threads
        y = of_grids(on_grid(x, bits, threads, x), self._q, threads)
        grouped = np.ascontiguousarray(y.T) if of_columns else y
        band = rows_of(BAND, grouped.shape[1])
        in_pieces(lambda at: differentiated(grouped[at], self._group), len(grouped), band, threads)
        if of_columns:
            y[:] = grouped.T
        of_grids(x.T, on_grid(y, bits, threads, y), threads, self._sum)
        self.rows += len(rows)

    def mean(self) -> Floats:
        """Of all groups."""
        self._sum /= self.rows * (len(self._sum) // self._group)
        return self._sum


def _drawn(draws: np.random.RandomState, count: int, some: int) -> Indices:
    return np.sort(draws.permutation(count)[:some])


def _slabs(chosen: Indices, slab: int) -> Iterator[Indices]:
    return (chosen[at : at + slab] for at in range(0, len(chosen), slab))


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


def normalise(bits: Bits) -> Halves:
    """Rows [m, n] of BF16 become FP16 in their place, by a power of two about as large as 1."""
    band = rows_of(BAND, bits.shape[1])

    def energy_of(piece: slice) -> float:
        wide = to_floats(bits[piece], "BF16", np.float64)
        return float(row_sums(row_sums(wide * wide)))

    squares = sum(in_pieces(energy_of, len(bits), band, None))
    power = frexp(squares / bits.size)[1] // 2 if squares > 0 else 0
    held = bits.view(np.float16)

    def put(piece: slice) -> None:
        scaled = np.ldexp(to_floats(bits[piece], "BF16", np.float64), -power)
        held[piece] = np.clip(scaled, -_LARGEST, _LARGEST)

    in_pieces(put, len(bits), band, None)
    return held


def group_of(size: int) -> int:
    """How many neighbours share a scale: 128, or the next power of two that divides a size."""
    return gcd(size, 128)


def learning_bytes(rows: int, size: int) -> int:
    """What learning holds in memory, at most: the rows, matrices, a slab, and what threads do."""
    cores = os.cpu_count() or 1
    own = max(size * min(cores * PIECE, size), cores * _TEMPORARIES * max(BAND, size))
    floats = 8 * (_MATRICES * size * size + 3 * size * min(rows, _slab(size)) + own)
    return 2 * size * rows + floats + _ORDER


def _slab(size: int) -> int:
    return min(ROWS_A_STEP, max(_LEAST_ROWS, rows_of(_SLAB, size)))


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
