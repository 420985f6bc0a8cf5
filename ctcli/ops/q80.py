"""Q8_0: groups of int8 under a float32 scale, as llama2.c has them (`quantize_q80`, export.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from ctcli.ops.sums import largest_along

_LARGEST_CODE = 127.0


def quantize_q80(weight: Tensor, group: int) -> tuple[Tensor, Tensor, float]:
    """Quantize: scale = max|w| / 127, q = w / scale rounded to nearest, ties to even.

    Where the scale is zero (a group of zeros, or of subnormals too small for one) so are the
    codes. In a group of subnormals the scale is coarse, and quotients beyond 127 become 127.

    Args:
        weight: [rows, columns] of any float dtype, columns a multiple of group.
        group: elements that share a scale.

    Returns:
        codes [rows, columns] int8, scales [rows, columns / group] float32, and the largest
        |w - q * scale| of all. Scales that are not finite tell of weights that are not.
    """
    rows, columns = weight.shape
    values = weight.to(torch.float32)
    grouped = values.view(rows, columns // group, group)
    scales = largest_along(grouped, 2).div_(_LARGEST_CODE)
    quotients = grouped / scales.masked_fill(scales == 0, 1.0)
    rounded = quotients.round_().clamp_(-_LARGEST_CODE, _LARGEST_CODE)
    codes = rounded.to(torch.int8).view(rows, columns)
    error = float(rounded.mul_(scales).sub_(grouped).abs_().amax())
    return codes, scales.view(rows, columns // group), error
