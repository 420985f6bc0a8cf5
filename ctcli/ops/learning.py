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
from typing import TYPE_CHECKING

import numpy as np

from ctcli.ops.exact import inverse, on_grid, precise_product, product, row_sums

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from ctcli.ops.bits import Floats

ROWS_A_STEP = 4096
_RATE, _MEMORY, _SQUARES, _LEAST = 3e-3, 0.9, 0.999, 1e-12
_ROW_BITS = 23  # rows are held as float32
_CHUNK = 256  # rows that one thread differentiates
_MATRICES = 16  # of [n, n] float64 that there are at once
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
        n = rows.shape[1]
        identity = np.eye(n)
        skew, mean, squares = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
        decay, decay_of_squares = 1.0, 1.0
        draws = np.random.RandomState(self.seed & 0xFFFFFFFF)
        with _threads() as threads:
            for _ in range(self.steps if len(rows) else 0):
                chosen = rows[np.sort(draws.permutation(len(rows))[:ROWS_A_STEP])]
                half = inverse(identity + skew, threads)
                by_q = self._gradient(chosen, 2 * half - identity, threads)
                turned = np.ascontiguousarray(half.T)
                moved = product(product(turned, by_q, threads), turned, threads)
                slope = moved.T - moved
                decay, decay_of_squares = decay * _MEMORY, decay_of_squares * _SQUARES
                mean = _MEMORY * mean + (1 - _MEMORY) * slope
                squares = _SQUARES * squares + (1 - _SQUARES) * slope * slope
                scale = np.sqrt(squares / (1 - decay_of_squares)) + _LEAST
                skew = skew - _RATE * (mean / (1 - decay)) / scale
                advance(chosen.nbytes)
            return _polished(2 * inverse(identity + skew, threads) - identity, threads)

    def _gradient(self, rows: Floats, q: Floats, threads: Executor) -> Floats:
        """The derivative of the loss by each element of Q, [n, n]."""
        x = rows.astype(np.float64)
        y = product(x, q, threads)
        chunks = [y[at : at + _CHUNK] for at in range(0, len(y), _CHUNK)]
        for _ in threads.map(lambda chunk: differentiated(chunk, self.group), chunks):
            pass
        groups = y.size // self.group
        return product(np.ascontiguousarray(x.T), y, threads) / groups


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


def normalised(rows: Floats) -> Floats:
    """Rows [m, n] float64, on a grid and by a power of two about as large as 1, as float32."""
    squares = float(row_sums(row_sums(rows * rows))) / rows.size if rows.size else 0.0
    scale = 2.0 ** -(np.frexp(squares)[1] // 2) if squares > 0 else 1.0
    return on_grid(rows * scale, _ROW_BITS).astype(np.float32)


def group_of(size: int, largest: int = 128) -> int:
    """The largest number of neighbours that divides a size, up to 128."""
    return next(n for n in range(min(size, largest), 0, -1) if size % n == 0)


def learning_bytes(rows: int, size: int) -> int:
    """What learning holds in memory, at most."""
    step = min(rows, ROWS_A_STEP)
    return 4 * size * rows + 8 * size * (_MATRICES * size + 5 * step)


def _polished(q: Floats, threads: Executor) -> Floats:
    """Q (3 I - Q^T Q) / 2, some times (Bjorck and Bowie 1971): nearer to an orthogonal matrix."""
    for _ in range(_POLISHING):
        square = precise_product(np.ascontiguousarray(q.T), q, threads)
        q = 1.5 * q - 0.5 * precise_product(q, square, threads)
    return q


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """One thread for each core; an interrupt does not wait for what was not begun."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
