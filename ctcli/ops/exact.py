"""Products of matrices that come out the same on every machine, whatever BLAS and threads do.

Both matrices are put on grids so coarse that all products of their elements, and all sums of these,
are multiples of one number below 2^53 times it: float64 holds them exactly, in any order (Ozaki et
al. 2012, "Error-free transformations of matrix multiplication"). Elementwise operations and square
roots are exact to the last bit by IEEE 754; nothing else is used here.
"""

from __future__ import annotations

from math import frexp
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from ctcli.ops.bits import Floats

Result = TypeVar("Result")
_BITS = 53
_LEAST = 32  # rows of a matrix that is inverted element by element
PIECE = 256  # rows that one thread multiplies
BAND = 2**15  # elements that one thread goes over at once


def on_grid(
    x: Floats, bits: int, threads: Executor | None = None, out: Floats | None = None
) -> Floats:
    """The nearest multiples of a power of two, so that magnitudes are at most 2^bits times it.

    Args:
        x: [m, n] float64, or float32 for up to 23 bits.
        bits: how many.
        threads: what goes over the rows; None: this thread.
        out: where they go; x itself will do; None: a new array.
    """
    result: Floats = np.empty_like(x) if out is None else out

    def largest_of(rows: slice) -> float:
        return max(float(x[rows].max(initial=0.0)), -float(x[rows].min(initial=0.0)))

    def put(rows: slice) -> None:
        found = np.divide(x[rows], step, out=result[rows])
        np.rint(found, out=found)
        found *= step

    band = rows_of(BAND, x.shape[1])
    largest = max(in_pieces(largest_of, len(x), band, threads), default=0.0)
    step = 2.0 ** (frexp(largest)[1] - bits)
    in_pieces(put, len(x), band, threads)
    return result


def bits_for(terms: int) -> int:
    """How many bits elements may have for sums of so many products to be exact."""
    return (_BITS - (terms - 1).bit_length()) // 2


def product(a: Floats, b: Floats, threads: Executor | None = None) -> Floats:
    """A B for a [m, k] and b [k, n] float64, of 21 bits each where k is 2048."""
    bits = bits_for(a.shape[1])
    return of_grids(on_grid(a, bits, threads), on_grid(b, bits, threads), threads)


def of_grids(
    a: Floats, b: Floats, threads: Executor | None = None, added_to: Floats | None = None
) -> Floats:
    """A B for matrices on grids of `bits_for` their common dimension, or what it makes of a sum."""
    result = np.empty((len(a), b.shape[1])) if added_to is None else added_to

    def multiply(rows: slice) -> None:
        if added_to is None:
            np.matmul(a[rows], b, out=result[rows])
        else:
            result[rows] += a[rows] @ b

    in_pieces(multiply, len(a), PIECE, threads)
    return result


def precise_product(a: Floats, b: Floats, threads: Executor | None = None) -> Floats:
    """A B, of twice as many bits."""
    bits = bits_for(a.shape[1])
    (high, low), (above, below) = _halves(a, bits, threads), _halves(b, bits, threads)
    result = of_grids(high, below, threads)
    of_grids(low, above, threads, result)
    return of_grids(high, above, threads, result)


def inverse(m: Floats, threads: Executor | None = None) -> Floats:
    """The inverse of a matrix whose symmetric part is positive definite, by Schur complements.

    It takes the place of the matrix.
    """
    n = len(m)
    if n <= _LEAST:
        m[:] = _small_inverse(m)
        return m
    half = n // 2
    b, c = m[:half, half:], m[half:, :half]
    first = inverse(m[:half, :half], threads)
    left, above = product(c, first, threads), product(first, b, threads)
    m[half:, half:] -= product(left, b, threads)
    last = inverse(m[half:, half:], threads)
    np.negative(product(above, last, threads), out=b)
    np.negative(product(last, left, threads), out=c)
    first -= product(b, left, threads)
    return m


def row_sums(x: Floats) -> Floats:
    """Sums over the last axis, in one order."""
    while (n := x.shape[-1]) > 1:
        half = n // 2
        sums = x[..., :half] + x[..., half : 2 * half]
        if n % 2:
            sums[..., 0] += x[..., -1]
        x = sums
    return x[..., 0]


def rows_of(elements: int, width: int) -> int:
    """How many rows, at least one, have so many elements."""
    return max(1, elements // width)


def in_pieces(
    work: Callable[[slice], Result], count: int, size: int, threads: Executor | None
) -> list[Result]:
    """What is found of each piece, so many of `count` rows, in order."""
    pieces = [slice(at, min(at + size, count)) for at in range(0, count, size)]
    each = map if threads is None or len(pieces) < 2 else threads.map
    return list(each(work, pieces))


def _halves(x: Floats, bits: int, threads: Executor | None) -> tuple[Floats, Floats]:
    high = on_grid(x, bits, threads)
    low = x - high
    return high, on_grid(low, bits, threads, low)


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
