"""Rounding weights to E2M1 or E4M3 with a power of two for each group.

OCP Microscaling Formats 1.0, with compressed-tensors' choice of the exponent: the group's largest
magnitude is rounded up to the next power of two if its significand is at least 1.75, else down, and
becomes 2^2 (E2M1) or 2^8 (E4M3).
"""

from __future__ import annotations

from numpy import float32, int64, uint8

from ctcli.ops.elements import BF16, F16, bits_of, from_e8m0, to_bf16, to_f16
from ctcli.ops.float8 import encode_elements as encode_e4m3
from ctcli.ops.float8 import read_elements as read_e4m3
from ctcli.ops.jit import inlined, merged
from ctcli.ops.loops import kernels
from ctcli.ops.nvfp4 import encode_elements as encode_e2m1
from ctcli.ops.nvfp4 import read_elements as read_e2m1
from ctcli.ops.pieces import Work
from ctcli.ops.tiles import Settings


@merged
def _scale_of(low: float32, high: float32, settings: Settings) -> tuple[float32, float32]:  # noqa: ARG001
    """Returns 2**exponent, and the exponent; both biased. A subnormal group (in D) gets 0."""
    if settings.kind == BF16:
        exponent, bias = (int64(to_bf16(high)) + (1 << 5)) >> 7, 127
    elif settings.kind == F16:
        exponent, bias = (int64(to_f16(high)) + (1 << 8)) >> 10, 15
    else:
        exponent, bias = (int64(bits_of(high)) + (1 << 21)) >> 23, 127
    if exponent:
        largest = 8 if settings.bits == 8 else 2
        exponent = min(max(exponent + int64(127 - bias - largest), int64(0)), int64(254))
    return from_e8m0(uint8(exponent)), float32(exponent)


@inlined
def _encode(work: Work, count: int, settings: Settings) -> None:
    if settings.bits == 8:
        encode_e4m3(work, count, settings.quotient)
    else:
        encode_e2m1(work, count, settings.quotient)


@inlined
def _decode(work: Work, count: int, settings: Settings) -> None:
    if settings.bits == 8:
        read_e4m3(work, count)
    else:
        read_e2m1(work, count)


KERNELS = kernels("mx", _scale_of, _encode, _decode)
