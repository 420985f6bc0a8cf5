"""Rounding weights to E2M1, E2M3 or E4M3 with a power of two for each group.

OCP Microscaling Formats 1.0, with compressed-tensors' choice of the exponent: the group's largest
magnitude is rounded up to the next power of two if its significand is at least 1.75 (1.9375 for
E2M3), else down, and becomes 2^2 (E2M1, E2M3) or 2^8 (E4M3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctcli.ops.device.ranges import Bounds
from ctcli.ops.device.rounding import from_e4m3, pow2, round_through, to_e2m1, to_e2m3, to_e4m3

_EXPONENT_OF_LARGEST = {4: 2, 6: 2, 8: 8}
# Mantissa bits, exponent bias, and the integer type of the same width.
_LAYOUTS = {
    torch.bfloat16: (7, 127, torch.int16),
    torch.float16: (10, 15, torch.int16),
    torch.float32: (23, 127, torch.int32),
}


@dataclass(frozen=True)
class Microscaling:
    """Elements of 4, 6 or 8 bits under exponents.

    Attributes:
        bits: 4 (E2M1), 6 (E2M3) or 8 (E4M3).
        dtype: of the weights.
        quotient_dtype: what w / scale is rounded to; None: float32.
    """

    bits: int
    dtype: torch.dtype
    quotient_dtype: torch.dtype | None

    def exponents(self, bounds: Bounds) -> Tensor:
        """Biased exponents, int32. An empty or subnormal group (in `dtype`) gets 0."""
        mantissa, bias, integer = _LAYOUTS[self.dtype]
        bits = bounds[1].to(self.dtype).view(integer).to(torch.int32)
        below = 4 if self.bits == 6 else 2
        exponent = (bits + (1 << (mantissa - below))) >> mantissa
        shift = 127 - bias - _EXPONENT_OF_LARGEST[self.bits]
        return (exponent + shift).clamp_(0, 254).masked_fill_(exponent == 0, 0)

    def encode(self, view: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the elements, and the float32 values that a reader computes from them."""
        scale = pow2(exponents)
        quotient = round_through(view / scale, self.quotient_dtype)
        if self.bits == 8:
            codes = to_e4m3(quotient)
            return codes, from_e4m3(codes).mul_(scale)
        codes, values = to_e2m3(quotient) if self.bits == 6 else to_e2m1(quotient)
        return codes, values.mul_(scale)

    def roundtrip(self, view: Tensor, bounds: Bounds) -> Tensor:
        """What a reader gets back of a grouped view that was quantized with these bounds."""
        return self.encode(view, self.exponents(bounds))[1]
