"""Sinkhorn's factors of the columns of dense matrices, in float64: a second way to find them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def column_factors(weights: Sequence[Tensor], rounds: int) -> Tensor:
    """Factors d of the columns that weights [rows, columns] share, their geometric mean one.

    With M the squares of all rows, one below the other, a round sets r_i = 1 / mean_j(M_ij c_j) and
    c_j = 1 / mean_i(r_i M_ij), from c = 1 on; d = sqrt(c).
    """
    squares = torch.cat([weight.double() for weight in weights]).square()
    columns = torch.ones(squares.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        rows = 1 / (squares * columns).mean(1)
        columns = 1 / (rows[:, None] * squares).mean(0)
    factors = columns.sqrt()
    return factors / factors.log().mean().exp()


def shared_by_heads(factors: Tensor, repeats: int, size: int) -> Tensor:
    """The same for query heads, `size` columns each, of which `repeats` share a key-value head."""
    heads = factors.view(-1, repeats, size).log().mean(1, keepdim=True).exp()
    shared = heads.expand(-1, repeats, -1).reshape(-1)
    return shared / shared.log().mean().exp()
