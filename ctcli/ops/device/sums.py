"""Values over all elements of a block."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor


def sum_of_squares(x: Tensor) -> float:
    """Sum of squares of float32 values: summed in float32 unless that overflows."""
    flat = x.reshape(-1)
    total = float(torch.dot(flat, flat))
    return total if isfinite(total) else float(flat.to(torch.float64).square().sum())


def largest_along(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Largest magnitude along some dimensions, which are kept; NaN if one of them is NaN.

    Args:
        x: of any float dtype of 16 bits or more.
        dims: the dimensions that become 1.

    Returns:
        Of x's dtype.
    """
    # Magnitudes are ordered as their bits are, and NaN above all.
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = x.view(integer).bitwise_and(torch.iinfo(integer).max)
    return bits.amax(dims, keepdim=True).view(x.dtype)


def largest_magnitude(x: Tensor) -> Tensor:
    """Largest magnitude of all: [1] float32, NaN if one is NaN."""
    return largest_along(x.reshape(-1), 0).to(torch.float32)
