"""Rounding weights to E2M1 with an E4M3 scale for each group and a float32 scale above them.

global = 448 * 6 / max|w|; scale = e4m3(global * max|group| / 6); value = e2m1(w * global / scale).
The rounding steps are compressed-tensors': the reciprocal first, and everything up to the scale's
own rounding in the weight's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctcli.ops.device.ranges import Bounds
from ctcli.ops.device.rounding import (
    E2M1_MAX,
    E4M3_MAX,
    from_e4m3,
    round_through,
    to_e2m1,
    to_e4m3,
)

_EIGHTH = 0x20  # the E4M3 code that stands for an empty group's scale, instead of zero


def global_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The float32 scale, as readers divide by it; 1 where there is nothing to scale.

    Args:
        amax: the largest magnitude of the weights that share it.
        dtype: of the weights.
    """
    largest = amax.clamp(min=torch.finfo(dtype).tiny)
    scale = round_through(round_through(1.0 / largest, dtype) * (E4M3_MAX * E2M1_MAX), dtype)
    return torch.where(scale.isfinite() & (amax > 0), scale, 1.0)


@dataclass(frozen=True, eq=False)
class Nvfp4:
    """E2M1 elements under a global scale.

    Attributes:
        dtype: of the weights.
        total: the global scale.
    """

    dtype: torch.dtype
    total: Tensor

    def scale(self, bounds: Bounds) -> Tensor:
        """E4M3 codes of the groups' scales."""
        local = round_through(bounds[1] / E2M1_MAX, self.dtype)
        codes = to_e4m3(local.mul_(self.total))
        empty = from_e4m3(codes) == 0
        return codes.view(torch.uint8).masked_fill(empty, _EIGHTH).view(codes.dtype)

    def encode(self, view: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """E2M1 codes, and the float32 values that a reader computes from them."""
        effective = from_e4m3(scale) / self.total
        codes, values = to_e2m1(view / effective)
        return codes, values.mul_(effective)

    def roundtrip(self, view: Tensor, bounds: Bounds) -> Tensor:
        """What a reader gets back of a grouped view that was quantized with these bounds."""
        return self.encode(view, self.scale(bounds))[1]
