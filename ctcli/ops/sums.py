"""Values over all elements of a block."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of [rows, columns] float32, as float64.

    Summed in float32 a row at a time, or, where that overflows, in float64.
    """
    norm = torch.linalg.vector_norm(x, dim=1).to(torch.float64)
    total = norm.square_().sum()
    return total if total.isfinite() else x.to(torch.float64).square().sum()


def largest_magnitude(x: Tensor) -> Tensor:
    """Largest magnitude of bfloat16, float16 or float32 values: [1] float32, NaN if one is NaN."""
    # Magnitudes are ordered as their bits are, and NaN above all.
    integer = {2: torch.int16, 4: torch.int32}[x.element_size()]
    bits = x.view(integer).bitwise_and(torch.iinfo(integer).max).amax().view(1)
    return bits.view(x.dtype).to(torch.float32)
