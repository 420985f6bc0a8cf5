"""Rounding weights to E4M3 (FP8) with floating-point scales: scale = max|w| / 448."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctcli.ops.device.ranges import Bounds, nonzero_scale
from ctcli.ops.device.rounding import E4M3_MAX, from_e4m3, round_through, to_e4m3


@dataclass(frozen=True)
class Float8:
    """E4M3 elements.

    Attributes:
        dtype: of the scales.
        quotient_dtype: what w / scale is rounded to; None: float32.
    """

    dtype: torch.dtype
    quotient_dtype: torch.dtype | None

    def scale(self, bounds: Bounds) -> Tensor:
        """Scales as float32."""
        return nonzero_scale(bounds[1] / E4M3_MAX, self.dtype)

    def encode(self, view: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """E4M3 codes, and the float32 values that a reader computes from them."""
        codes = to_e4m3(round_through(view / scale, self.quotient_dtype))
        return codes, from_e4m3(codes, scale)

    def roundtrip(self, view: Tensor, bounds: Bounds) -> Tensor:
        """What a reader gets back of a grouped view that was quantized with these bounds."""
        return self.encode(view, self.scale(bounds))[1]
