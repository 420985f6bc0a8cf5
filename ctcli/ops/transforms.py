"""The rotations to choose from, for every size whose primes are not large.

- `hadamard` takes the Hadamard factors with the least work; for powers of two that is Sylvester's
  matrix, compressed-tensors' own.
- `random-hadamard` follows compressed-tensors: diag(signs) (H_K^T (x) Sylvester(n / K)), K the
  largest order up to 256 with n / K a power of two. With the same generator that is its matrix to
  the sign, unless K is 20, 52, 100, 188, 208, 232, 236, 244 or 248: its H_K differs there.
- `random-matrix` is a Kronecker product of orthogonal matrices from the uniform distribution.

A size without Hadamard factors gets such orthogonal factors for its odd part.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from ctcli.ops.draws import Draws
from ctcli.ops.hadamard import LARGEST_ORDER, hadamard, paley_one, sylvester, with_ones_first
from ctcli.ops.kronecker import balanced_factors, prime_factors
from ctcli.ops.rotation import Rotation

if TYPE_CHECKING:
    from ctcli.ops.bits import Floats
    from ctcli.ops.hadamard import HadamardMatrix
    from ctcli.ops.rotation import Factors

TRANSFORM_TYPES = ("hadamard", "random-hadamard", "random-matrix")

LARGEST_PRIME = 1024
"""A factor of f costs 2 f operations an element: about 20 ns for this one in float32."""

# Fewer and larger random factors mix better and take longer.
_RANDOM_FACTOR = 128
_SYLVESTER_FACTOR = 32
_LARGEST_BUNDLED = 256


def make_rotation(
    transform_type: str,
    size: int,
    draws: Draws,
    *,
    block_size: int | None = None,
    keeps_ones: bool = False,
) -> Rotation:
    """A rotation of [size, size].

    Args:
        transform_type: one of TRANSFORM_TYPES.
        size: rows of Q.
        draws: for signs and orthogonal factors.
        block_size: Q is block-diagonal, the same block of this size repeated.
        keeps_ones: Q 1 = 1, so that Q commutes with the subtraction of the mean in LayerNorm.

    Raises:
        ValueError: the block size does not divide the size, or a prime factor is too large.
    """
    block = block_size or size
    if size % block:
        raise ValueError(f"blocks of {block} do not divide size {size}")
    largest = max(prime_factors(block), default=1)
    if largest > LARGEST_PRIME:
        raise ValueError(
            f"size {block} has the prime factor {largest}; a rotation is fast up to {LARGEST_PRIME}"
        )
    if keeps_ones:
        rotation = _keeping_ones(transform_type, block, draws)
    elif transform_type == "random-matrix":
        rotation = Rotation((_orthogonal_factors(block, draws),), f"random matrix {block}")
    elif transform_type == "random-hadamard":
        rotation = _random_hadamard(block, draws)
    else:
        rotation = Rotation((_hadamard_factors(block, draws),), _words(block))
    return rotation.repeated(size // block)


def seed_for(seed: int | None, name: str) -> int:
    """A seed of its own for each name, the same on every machine."""
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big") >> 1


def _random_hadamard(size: int, draws: Draws) -> Rotation:
    signs = draws.signs(size)
    matrices = _bundled_factors(size)
    factors = _normalised(matrices) if matrices else _hadamard_factors(size, draws)
    return Rotation((signs, factors), f"random signs, {_words(size)}")


def _keeping_ones(transform_type: str, size: int, draws: Draws) -> Rotation:
    """F D G^T, the first columns of F and G all alike and D = diag(1, random signs).

    G^T takes the ones to the first coordinate, D leaves it there, and F takes it back.
    """
    make = _orthogonal_factors if transform_type == "random-matrix" else _hadamard_factors
    left, right = make(size, draws, True), make(size, draws, True)
    signs = draws.signs(size)
    signs[0] = 1.0
    words = f"random matrix {size}" if transform_type == "random-matrix" else _words(size)
    transposed = tuple(np.ascontiguousarray(factor.T) for factor in right)
    return Rotation((left, signs, transposed), f"{words}, random signs, keeping ones")


def _hadamard_factors(size: int, draws: Draws, ones_first: bool = False) -> Factors:
    """Normalised Hadamard factors with the least work, and orthogonal ones where there are none."""
    odd, power = _split(size)
    orders = _least_orders(size)
    if orders is None:
        orthogonal = _orthogonal_factors(odd, draws, ones_first)
        return orthogonal + _normalised(_sylvester_factors(power))
    matrices = [known.T for order in orders if (known := hadamard(order)) is not None]
    if ones_first:
        matrices = [with_ones_first(matrix) for matrix in matrices]
    return _normalised(matrices + _sylvester_factors(size // prod(orders)))


def _least_orders(size: int) -> tuple[int, ...] | None:
    """Orders of Hadamard matrices for the odd part of a size, with the least sum; None: no way."""
    odd, _ = _split(size)
    choices = (tuple(map(_least_order, parts)) for parts in _products(odd))
    possible = [orders for orders in choices if all(orders) and size % prod(orders) == 0]
    return min(possible, key=sum, default=None)


def _least_order(odd: int) -> int:
    """The least order odd * 2^k of a Hadamard matrix that is known here; 0 if there is none."""
    orders = (odd << k for k in range(2, LARGEST_ORDER.bit_length()))
    return next((order for order in orders if hadamard(order) is not None), 0)


def _products(odd: int, least: int = 3) -> Iterator[tuple[int, ...]]:
    """All ways to write an odd number as a product of factors above 1, in ascending order."""
    if odd == 1:
        yield ()
    for factor in range(least, odd + 1, 2):
        if odd % factor == 0:
            yield from ((factor, *rest) for rest in _products(odd // factor, factor))


def _bundled_factors(size: int) -> list[HadamardMatrix] | None:
    """The factors of compressed-tensors' H_K^T (x) Sylvester(n / K), if there is such a K."""
    odd, power = _split(size)
    if size == 32:  # its only power of two that is not Sylvester's matrix
        matrix = paley_one(size)
        return None if matrix is None else [matrix.T]
    if odd == 1:
        return _sylvester_factors(size)
    orders = [odd << k for k in range(2, power.bit_length()) if odd << k <= _LARGEST_BUNDLED]
    if not orders:
        return None
    order, matrix = orders[-1], hadamard(orders[-1])
    doublings = 1
    while matrix is not None and (half := _halved(matrix)) is not None:
        matrix, doublings = half, doublings * 2
    if matrix is None:
        return None
    return [*_sylvester_factors(doublings), matrix.T, *_sylvester_factors(size // order)]


def _halved(matrix: HadamardMatrix) -> HadamardMatrix | None:
    """H of Sylvester(2) (x) H, or None if the matrix is not of that form."""
    half = matrix[: matrix.shape[0] // 2, : matrix.shape[0] // 2]
    return half if np.array_equal(np.kron(sylvester(2), half), matrix) else None


def _sylvester_factors(size: int) -> list[HadamardMatrix]:
    """Factors of Sylvester's matrix of a power of two, smallest first; none for 1."""
    sizes = reversed(balanced_factors(size, _SYLVESTER_FACTOR))
    return [sylvester(f) for f in sizes if f > 1]


def _normalised(matrices: list[HadamardMatrix]) -> Factors:
    return tuple(
        np.ascontiguousarray(matrix, np.float64) / sqrt(len(matrix)) for matrix in matrices
    )


def _orthogonal_factors(size: int, draws: Draws, ones_first: bool = False) -> Factors:
    """Factors from the uniform (Haar) distribution, or from it among those with this column."""
    sizes = balanced_factors(size, _RANDOM_FACTOR)
    return tuple(_orthogonal(f, draws, ones_first) for f in sizes)


def _orthogonal(size: int, draws: Draws, ones_first: bool) -> Floats:
    """Mezzadri, "How to generate random matrices from the classical compact groups" (2007)."""
    normal = draws.normal(size)
    if ones_first:
        normal[:, 0] = 1.0
    q, r = np.linalg.qr(normal)
    unique: Floats = q * np.sign(r.diagonal())
    return unique


def _words(size: int) -> str:
    """What the factors of a Hadamard transform of this size are."""
    odd, power = _split(size)
    if _least_orders(size) is not None:
        return f"hadamard {size}"
    orthogonal = " (x) ".join(f"orthogonal {f}" for f in balanced_factors(odd, _RANDOM_FACTOR))
    return f"{orthogonal} (x) hadamard {power}" if power > 1 else orthogonal


def _split(size: int) -> tuple[int, int]:
    """The odd part of a size, and the power of two."""
    power = size & -size
    return size // power, power
