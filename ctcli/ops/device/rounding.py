"""Rounding to the number formats of quantized weights, and reading them back.

E4M3 (FP8) and E2M1 (FP4): OCP Microscaling Formats specification 1.0, section 5.3; all rounding
is to nearest, ties to even. Unless they say so, functions take float32 and return new tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctcli.ops.dtypes import DTYPES

E2M1_MAX = 6.0
E4M3_MAX = DTYPES["F8_E4M3"].largest


def round_through(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round float32 values to `dtype` and back; None leaves them alone."""
    return x if dtype in (None, torch.float32) else x.to(dtype).to(torch.float32)


def round_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)` of float values of any dtype, with no other rounding in between.

    Torch takes float64 through float32, whose ties may be none. Rounding to odd on the way keeps
    what lies on either side of a tie there (Boldo and Melquiond 2008, doi:10.1109/TC.2007.70819).
    """
    if x.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16):
        return x.to(dtype)
    nearest = x.to(torch.float32)
    back = nearest.to(torch.float64)
    is_inexact, is_away = back != x, back.abs_() > x.abs()
    odd = nearest.view(torch.int32).sub_(is_away.to(torch.int32))
    return odd.bitwise_or_(is_inexact).view(torch.float32).to(dtype)


def to_e4m3(x: Tensor) -> Tensor:
    """Saturate to +-448 and round to E4M3; -0 stays -0. Overwrites `x`."""
    return x.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def from_e4m3(codes: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """The float32 values of E4M3 codes (without NaN), times a scale below 2**120.

    Shifted by seven, a code's exponent and mantissa are those of a float16 that is 2**8 smaller;
    this is seven times faster than torch's own conversion.
    """
    extended = codes.view(torch.int8).to(torch.int16)
    halves = extended.bitwise_left_shift_(7).bitwise_and_(~0x4000)  # one of the two signs
    return halves.view(torch.float16).to(torch.float32).mul_(scale * 256.0)


def to_e2m1(x: Tensor) -> tuple[Tensor, Tensor]:
    """Saturate to +-6 and round to E2M1; what rounds to zero keeps its sign. Overwrites `x`.

    With 2**e <= |x|, E2M1 has steps of 2**e / 2 (1/2 below 1), which is the spacing of float32 at
    3 * 2**(e+21): adding and subtracting that number rounds, ties to even.

    Returns:
        The 4-bit codes, uint8: sign << 3 | index into 0, .5, 1, 1.5, 2, 3, 4, 6; and their values,
        float32.
    """
    x.clamp_(-E2M1_MAX, E2M1_MAX)
    magic = (x.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=1.0)
    values = torch.add(x, magic.mul_(3 * 2.0**21)).sub_(magic)
    # 2**-14 is float16's smallest normal number: it counts up from there as E2M1 does from 1. A
    # trace of x, too little to change anything else, gives zeros their sign.
    scaled = torch.mul(values, 2.0**-14, out=magic).add_(x, alpha=2.0**-40)
    codes = scaled.to(torch.float16).view(torch.int16).bitwise_right_shift_(9).to(torch.uint8)
    return codes.bitwise_or_(codes >> 3).bitwise_and_(15), values


def to_e2m3(x: Tensor) -> tuple[Tensor, Tensor]:
    """Saturate to +-7.5 and round to E2M3; all keep their sign.

    Returns:
        The 6-bit codes, uint8: sign << 5 | index into 0, 1/8, ..., 7/8, 1, 9/8, ..., 7.5; and their
        values, float32.
    """
    magnitude = x.abs().nan_to_num_(nan=7.5).clamp_(max=7.5)
    power = (magnitude.view(torch.int32) >> 23).clamp_(min=127)
    steps = torch.round(magnitude * pow2(257 - power))  # of 2**e / 8, and at most 16 of them
    codes = (steps.to(torch.int32) + 8 * (power - 127)).to(torch.uint8)
    values = torch.copysign(steps * pow2(power - 3), x)
    return codes | (torch.signbit(x).to(torch.uint8) << 5), values


def from_e2m1(codes: Tensor) -> Tensor:
    """The float32 values of 4-bit codes.

    Its exponent and mantissa shifted by nine, a code is a float16 that is 2**14 smaller.
    """
    bits = codes.to(torch.int16)
    sign = bits.bitwise_and(8).bitwise_left_shift_(12)
    halves = bits.bitwise_and_(7).bitwise_left_shift_(9).bitwise_or_(sign)
    return halves.view(torch.float16).to(torch.float32).mul_(2.0**14)


def pow2(exponent: Tensor) -> Tensor:
    """2**(exponent - 127) as float32, exactly.

    Args:
        exponent: biased exponents, int32, 0 to 254.
    """
    bits = (exponent << 23).masked_fill(exponent == 0, 1 << 22)  # 2**-127 is subnormal
    return bits.view(torch.float32)
