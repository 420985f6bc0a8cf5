"""Kronecker products of small square matrices: choosing their sizes, and applying them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Floats

Array = TypeVar("Array", "Floats", "Tensor")

# Below, a product of matrices spends its time on other things than arithmetic; above, a dense
# product takes longer than two small ones.
_LEAST_LAST, _LARGEST_MERGED = 16, 256


def transposed_times(factors: Sequence[Array], x: Array) -> Array:
    """K^T x for K = F1 (x) F2 (x) ..., [n, n], and x [batch, n, columns], without forming K.

    A factor of f rows costs 2 f operations an element.
    """
    batch, n, columns = x.shape
    before, after = batch, n * columns
    for factor in factors:
        f = factor.shape[0]
        after //= f
        x = x.reshape(before, f) @ factor if after == 1 else factor.T @ x.reshape(before, f, after)
        before *= f
    return x.reshape(batch, n, columns)


def merged(factors: Sequence[Floats]) -> tuple[Floats, ...]:
    """Factors of the same Kronecker product, the last of them large enough to be fast."""
    found = [*factors]
    while len(found) > 1 and found[-1].shape[0] < _LEAST_LAST:
        *rest, one, other = found
        if one.shape[0] * other.shape[0] > _LARGEST_MERGED:
            break
        found = [*rest, np.kron(one, other)]
    return tuple(found)


def balanced_factors(n: int, limit: int) -> tuple[int, ...]:
    """As few factors of n as keep within the limit, of similar size, largest first.

    A prime above the limit is a factor of its own.
    """
    primes = sorted(prime_factors(n), reverse=True)
    for parts in count(1):
        factors = [1] * parts
        for prime in primes:
            factors[factors.index(min(factors))] *= prime
        if max(factors) <= max([limit, *primes[:1]]):
            return tuple(sorted(factors, reverse=True))
    raise AssertionError("each prime has a factor of its own at last")


def prime_factors(n: int) -> list[int]:
    """The primes whose product n is, smallest first."""
    primes, divisor = [], 2
    while n > 1:
        if divisor * divisor > n:
            divisor = n
        while n % divisor == 0:
            primes.append(divisor)
            n //= divisor
        divisor += 1
    return primes


def order(factors: Sequence[Floats]) -> int:
    """Rows of the Kronecker product."""
    return prod(factor.shape[0] for factor in factors)
