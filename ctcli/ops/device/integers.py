"""Rounding weights to integers of B bits, with a scale and perhaps a zero point.

Symmetric: scale = max|w| / ((2^B - 1) / 2), q = round(w / scale). Signed: scale = -m / 2^(B-1) with
m the element of largest magnitude. Asymmetric: the range, with zero in it, is divided in 2^B - 1
steps and a zero point z added: q = round(w / scale + z).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctcli.ops.device.ranges import Bounds, nonzero_scale
from ctcli.ops.device.rounding import round_through


@dataclass(frozen=True)
class Integers:
    """An integer format.

    Attributes:
        bits: B, 2 to 8.
        symmetric: no zero point.
        signed: scales take their sign from the element of largest magnitude.
        dtype: D, of the scales, to which every step up to them is rounded.
        quotient_dtype: what w / scale is rounded to; None: float32.
    """

    bits: int
    symmetric: bool
    signed: bool
    dtype: torch.dtype
    quotient_dtype: torch.dtype | None

    def parameters(self, bounds: Bounds) -> tuple[Tensor, Tensor | None]:
        """Scale, and zero point where there is one, as float32."""
        (low, high), steps, lowest = bounds, 2**self.bits - 1, -(2.0 ** (self.bits - 1))
        if self.signed:
            extreme = torch.where(-low >= high, low, high)
            return nonzero_scale(-extreme / -lowest, self.dtype), None
        if self.symmetric:
            return nonzero_scale(high / (steps / 2), self.dtype), None
        scale = round_through(round_through(high - low, self.dtype) / steps, self.dtype)
        zero = round_through(lowest - round_through(low / scale, self.dtype), self.dtype)
        # An empty group gives 0 / 0 here; compressed-tensors' conversion to int8 makes that 0.
        zero = zero.nan_to_num_(nan=0.0).clamp_(lowest, lowest + steps).round_()
        return nonzero_scale(scale, self.dtype), zero

    def encode(self, view: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes, and the values that a reader computes from them, both float32."""
        lowest = -(2.0 ** (self.bits - 1))
        codes = round_through(view / scale, self.quotient_dtype)
        if zero is not None:
            codes = round_through(codes.add_(zero), self.quotient_dtype)
        codes = codes.clamp_(lowest, -lowest - 1).round_()
        return codes, (codes if zero is None else codes - zero) * scale

    def roundtrip(self, view: Tensor, bounds: Bounds) -> Tensor:
        """What a reader gets back of a grouped view that was quantized with these bounds."""
        return self.encode(view, *self.parameters(bounds))[1]
