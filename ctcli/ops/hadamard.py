"""Hadamard matrices: square, of +1 and -1, with H H^T = n I, as int8.

Every matrix is derived here, by one of these constructions:

- Sylvester (1867): H_2n = [[H_n, H_n], [H_n, -H_n]].
- Paley (1933): the quadratic character of a finite field of q elements gives the orders q + 1
  (I, q = 3 mod 4, here primes) and 2 (q + 1) (II, q = 1 mod 4, primes and their powers).
- Williamson (1944): four symmetric circulant matrices of order t, whose squares sum to 4t I, give
  the order 4t; Goethals and Seidel (1967): so do circulant ones whose A A^T sum to 4t I.

They reach 2 and every multiple of 4 up to 256. There most are compressed-tensors' bundled matrices
to the sign (it took them from Sloane's library), and where one order has several of these
constructions, the choice is the one that agrees.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

LARGEST_ORDER = 1024
"""Orders above are not looked for; powers of two have no limit."""

_LAST_SKEW = 200
"""Above, Paley's first matrix is given its symmetric form, as compressed-tensors has it."""

HadamardMatrix = NDArray[np.int8]

# Turyn-type sequences X, Y, Z, W of lengths n, n, n, n - 1, with the autocorrelations
# N_X + N_Y + 2 N_Z + 2 N_W = 0 at every shift but 0, by 3 n - 1. Those for 107 are by Kharaghani
# and Tayfeh-Rezaie, "A Hadamard matrix of order 428" (2005); the others by Best, Djokovic,
# Kharaghani and Ramp, "Turyn-type sequences" (2013).
_TURYN_TYPE = {
    47: ("++++++--++--++++", "++++--+--+-----+", "++++--+-+-+-++--", "++++--++-+-+--+"),
    59: (
        "+++++--+++--+-+-+-++",
        "++++++-+-++--+++-+-+",
        "++++-+----++--+--++-",
        "++++-+++---+-++-+--",
    ),
    107: (
        "+++----++-+-+-----++++-++-++++----+-",
        "+-+++++--+-+--+--++--++++-++++---++-",
        "+-+++++-+--++++-+++-++--+++-+--+---+",
        "+++-+-----++--+-+++--+-+-+++-++++-+",
    ),
}
# The first halves of Williamson's symmetric first rows. Holzmann, Kharaghani and Tayfeh-Rezaie
# classify them in "Williamson matrices up to order 59" (2008).
_WILLIAMSON = {
    23: ("+++-+++-+---", "+++---++-+-+", "+-++-++--+++", "++---+---+-+"),
    29: ("++--+--+-+++-++", "++++-++-+---+++", "+-+---++--+-+++", "+++---++--+-+--"),
    39: (
        "+++--+-+-----+--++--",
        "++++---+--++----+-+-",
        "+++--++-+---+-+--+--",
        "+---++-+-+-----+++-+",
    ),
    43: (
        "+---++--++++-+-+++-++-",
        "++-++++++----+-+--++-+",
        "+++-+-++--+-+-++++-+--",
        "++---++++-+--+--++----",
    ),
}


@cache
def hadamard(order: int) -> HadamardMatrix | None:
    """A Hadamard matrix, [order, order] int8 (do not change it), or None if none is known here."""
    if order > 0 and order & (order - 1) == 0:
        return sylvester(order)
    if order < 1 or order % 4 or order > LARGEST_ORDER:
        return None
    for construct in (paley_one, _paley_two, _williamson, _goethals_seidel):
        matrix = construct(order)
        if matrix is not None:
            return matrix
    half = hadamard(order // 2)
    return None if half is None else np.kron(sylvester(2), half)


def sylvester(order: int) -> HadamardMatrix:
    """Sylvester's matrix of a power of two: H[i, j] = (-1)^(ones in the bits of i & j), int8."""
    matrix = np.ones((1, 1), np.int8)
    while matrix.shape[0] < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def with_ones_first(matrix: HadamardMatrix) -> HadamardMatrix:
    """The same Hadamard matrix with rows negated so that its first column is all ones."""
    return matrix * matrix[:, :1]


def paley_one(order: int) -> HadamardMatrix | None:
    """Paley's first matrix if order - 1 is a prime that is 3 mod 4: its character, bordered."""
    q = order - 1
    if q % 4 != 3 or _prime_power(q) != (q, 1):
        return None
    matrix = np.ones((order, order), np.int8)
    matrix[0, 1:] = -1
    matrix[1:, 1:] = _character_matrix(q, 1) + np.eye(q, dtype=np.int8)
    if order <= _LAST_SKEW:
        return matrix
    # Rows of chi(i - j) in reverse order make chi(i + j), negated as -1 is no square.
    matrix[2:] = matrix[:1:-1].copy()
    matrix[:, 1:] *= -1
    return matrix


def _paley_two(order: int) -> HadamardMatrix | None:
    """[[C + I, C - I], [C - I, -C - I]], C symmetric: the character's matrix bordered by ones."""
    half = order // 2
    field = _prime_power(half - 1)
    if half % 4 != 2 or field is None:
        return None
    conference = np.ones((half, half), np.int8)
    conference[0, 0] = 0
    conference[1:, 1:] = _character_matrix(*field)
    one = np.eye(half, dtype=np.int8)
    plus, minus = conference + one, conference - one
    return np.block([[plus, minus], [minus, -plus]])


def _prime_power(q: int) -> tuple[int, int] | None:
    """The prime p and the k with q = p^k, if this odd q is such a power."""
    p = next((divisor for divisor in range(3, q + 1, 2) if q % divisor == 0), 0)
    return next(((p, k) for k in range(1, q.bit_length()) if p**k == q), None)


def _character_matrix(p: int, k: int) -> HadamardMatrix:
    """chi(a_i - a_j) over the field of p^k elements, p odd: 1 for squares, -1, and 0 for zero."""
    # The elements are numbered by their digits to the base p.
    place = p ** np.arange(k)
    squares = np.array(_powers_of_a_generator(p, k)[::2])
    character = np.full(p**k, -1, np.int8)
    character[squares @ place] = 1
    character[0] = 0
    digits = np.arange(p**k)[:, np.newaxis] // place % p
    differences = (digits[:, np.newaxis] - digits) % p
    matrix: HadamardMatrix = character[differences @ place]
    return matrix


def _powers_of_a_generator(p: int, k: int) -> list[tuple[int, ...]]:
    """x^0, x^1, ..., all nonzero elements of the field of p^k, as coefficients of 1, x, ...

    x^k is replaced by a polynomial, the first one for which x generates the whole group.
    """
    one = (1,) + (0,) * (k - 1)
    for replacement in product(range(1, p), *[range(p)] * (k - 1)):
        powers = [one]
        while True:
            *low, top = powers[-1]
            following = tuple(
                (s + top * r) % p for s, r in zip((0, *low), replacement, strict=True)
            )
            if following == one:
                break
            powers.append(following)
        if len(powers) == p**k - 1:
            return powers
    raise AssertionError("the group of a finite field is cyclic")


def _goethals_seidel(order: int) -> HadamardMatrix | None:
    """Four circulant matrices of Turyn-type sequences, in the array of Goethals and Seidel."""
    t = order // 4
    if t not in _TURYN_TYPE:
        return None
    x, y, z, w = (_signs(text) for text in _TURYN_TYPE[t])
    rows = ((z, w, x), (z, w, -x), (z, -w, y), (z, -w, -y))
    a, b, c, d = (_circulant(np.concatenate(row)) for row in rows)
    br, cr, dr = b[:, ::-1], c[:, ::-1], d[:, ::-1]
    bt, ct, dt = b.T[:, ::-1], c.T[:, ::-1], d.T[:, ::-1]
    return np.block([[a, br, cr, dr], [-br, a, -dt, ct], [-cr, dt, a, -bt], [-dr, -ct, bt, a]])


def _williamson(order: int) -> HadamardMatrix | None:
    """Four symmetric circulant matrices in Williamson's array."""
    if order // 4 not in _WILLIAMSON:
        return None
    halves = [_signs(text) for text in _WILLIAMSON[order // 4]]
    a, b, c, d = (_circulant(np.concatenate((half, half[:0:-1]))) for half in halves)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])


def _circulant(first: HadamardMatrix) -> HadamardMatrix:
    return np.stack([np.roll(first, i) for i in range(first.size)])


def _signs(text: str) -> HadamardMatrix:
    return np.array([1 if sign == "+" else -1 for sign in text], np.int8)
