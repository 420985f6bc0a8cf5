"""Values over all elements of a block."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares of float32 values, as float64: summed in float32 unless that overflows."""
    flat = x.reshape(-1)
    total = torch.dot(flat, flat).to(torch.float64)
    return total if total.isfinite() else flat.to(torch.float64).square().sum()


def largest_magnitude(x: Tensor) -> Tensor:
    """Largest magnitude of values of any float dtype: [1] float32, NaN if one is NaN."""
    # Magnitudes are ordered as their bits are, and NaN above all.
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = x.view(integer).bitwise_and(torch.iinfo(integer).max).amax().view(1)
    return bits.view(x.dtype).to(torch.float32)
