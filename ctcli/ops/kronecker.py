"""Kronecker products of small square matrices: choosing their sizes, and applying them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import prod

import torch
from torch import Tensor


def transposed_times(factors: Sequence[Tensor], x: Tensor) -> Tensor:
    """K^T x for K = F1 (x) F2 (x) ..., [n, n], and x [batch, n, columns], without forming K.

    A factor of f rows costs 2 f operations an element. With the columns stored one after another
    (the transpose of a row-major matrix), every step is one matrix product that also moves its
    factor's index to the front; that is faster than many small products.
    """
    batch, n, columns = x.shape
    if batch == 1 and x[0].T.is_contiguous():
        y = x[0].T
        for factor in reversed(factors):
            y = factor.T @ y.reshape(-1, factor.shape[0]).T
        return y.reshape(1, n, columns)
    before = batch
    for factor in factors:
        f = factor.shape[0]
        y = x.reshape(before, f, -1)
        x = torch.bmm(factor.T.expand(before, f, f), y)
        before *= f
    return x.reshape(batch, n, columns)


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


def order(factors: Sequence[Tensor]) -> int:
    """Rows of the Kronecker product."""
    return prod(factor.shape[0] for factor in factors)
