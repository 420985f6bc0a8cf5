"""Products of matrices that come out the same on every machine, whatever BLAS and threads do.

Both matrices are put on grids so coarse that all products of their elements, and all sums of these,
are multiples of one number below 2^53 times it: float64 holds them exactly, in any order (Ozaki et
al. 2012, "Error-free transformations of matrix multiplication"). Elementwise operations and square
roots are exact to the last bit by IEEE 754; nothing else is used here.
"""

from __future__ import annotations

from math import frexp
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ctcli.ops.bits import Floats

_BITS = 53
_LEAST = 32  # rows of a matrix that is inverted element by element
_PIECE = 256  # rows that one thread multiplies


def on_grid(x: Floats, bits: int) -> Floats:
    """The nearest multiples of a power of two, so that magnitudes are at most 2^bits times it."""
    largest = float(np.abs(x).max(initial=0.0))
    step = 2.0 ** (frexp(largest)[1] - bits)
    found: Floats = np.rint(x / step) * step
    return found


def product(a: Floats, b: Floats, threads: Executor | None = None) -> Floats:
    """A B for a [m, k] and b [k, n] float64, of 21 bits each where k is 2048."""
    bits = _bits(a.shape[1])
    return _multiplied(on_grid(a, bits), on_grid(b, bits), threads)


def precise_product(a: Floats, b: Floats, threads: Executor | None = None) -> Floats:
    """A B, of twice as many bits."""
    bits = _bits(a.shape[1])
    (high, low), (above, below) = _halves(a, bits), _halves(b, bits)
    small = _multiplied(high, below, threads) + _multiplied(low, above, threads)
    return _multiplied(high, above, threads) + small


def inverse(m: Floats, threads: Executor | None = None) -> Floats:
    """The inverse of a matrix whose symmetric part is positive definite, by Schur complements."""
    n = len(m)
    if n <= _LEAST:
        return _small_inverse(m)
    half = n // 2
    b, c = m[:half, half:], m[half:, :half]
    first = inverse(m[:half, :half], threads)
    left, above = product(c, first, threads), product(first, b, threads)
    last = inverse(m[half:, half:] - product(left, b, threads), threads)
    corner = product(above, last, threads)
    result = np.empty_like(m)
    result[:half, :half] = first + product(corner, left, threads)
    result[:half, half:] = -corner
    result[half:, :half] = -product(last, left, threads)
    result[half:, half:] = last
    return result


def row_sums(x: Floats) -> Floats:
    """Sums over the last axis, in one order."""
    while (n := x.shape[-1]) > 1:
        half = n // 2
        sums = x[..., :half] + x[..., half : 2 * half]
        if n % 2:
            sums[..., 0] += x[..., -1]
        x = sums
    return x[..., 0]


def _bits(terms: int) -> int:
    return (_BITS - (terms - 1).bit_length()) // 2


def _multiplied(a: Floats, b: Floats, threads: Executor | None) -> Floats:
    if threads is None or len(a) < 2 * _PIECE:
        whole: Floats = a @ b
        return whole
    result = np.empty((len(a), b.shape[1]))
    pieces = [slice(at, at + _PIECE) for at in range(0, len(a), _PIECE)]
    for _ in threads.map(lambda piece: np.matmul(a[piece], b, out=result[piece]), pieces):
        pass
    return result


def _halves(x: Floats, bits: int) -> tuple[Floats, Floats]:
    high = on_grid(x, bits)
    return high, on_grid(x - high, bits)


def _small_inverse(m: Floats) -> Floats:
    """Gauss and Jordan, without a search for pivots."""
    rest, found = m.copy(), np.eye(len(m))
    for i in range(len(m)):
        pivot = rest[i, i]
        rest[i] /= pivot
        found[i] /= pivot
        factors = rest[:, i].copy()
        factors[i] = 0.0
        rest -= factors[:, None] * rest[i]
        found -= factors[:, None] * found[i]
    return found
