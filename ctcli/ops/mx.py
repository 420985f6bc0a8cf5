"""Rounding weights to E2M1, E2M3 or E4M3 with a power of two for each group.

OCP Microscaling Formats 1.0, with compressed-tensors' choice of the exponent: the group's largest
magnitude is rounded up to the next power of two if its significand is at least 1.75 (1.9375 for
E2M3), else down, and becomes 2^2 (E2M1, E2M3) or 2^8 (E4M3).
"""

from __future__ import annotations

from numpy import float32, int64, uint8, uint32

from ctcli.ops.elements import (
    BF16,
    E2M3_MAX,
    E4M3_MAX,
    F16,
    bits_of,
    float_of,
    from_e2m3,
    from_e8m0,
    rounded_e2m3,
    squared,
    to_bf16,
    to_f16,
)
from ctcli.ops.float8 import add_errors as add_e4m3
from ctcli.ops.float8 import encode_elements as encode_e4m3
from ctcli.ops.float8 import read_elements as read_e4m3
from ctcli.ops.jit import inlined, merged
from ctcli.ops.loops import kernels
from ctcli.ops.nvfp4 import encode_elements as encode_e2m1
from ctcli.ops.nvfp4 import read_elements as read_e2m1
from ctcli.ops.nvfp4 import value_of as e2m1_value_of
from ctcli.ops.pieces import PieceBuffers, divide
from ctcli.ops.searches import SearchBuffers, error_adder, searcher
from ctcli.ops.tiles import KernelSettings

_MAGNITUDE, _SIGN, _EXPONENT = uint32(0x7FFFFFFF), uint32(0x80000000), uint32(0x7F800000)
_SIXTEENTH = float32(2.0**-4)


@merged
def _scale_of(
    low: float32,  # noqa: ARG001
    high: float32,
    settings: KernelSettings,
    kind: int,
) -> tuple[float32, float32]:
    """Returns 2**exponent, and the exponent; both biased. A subnormal group (in D) gets 0."""
    below = 4 if settings.bits == 6 else 2  # the mantissa's bit that rounds it up
    if kind == BF16:
        exponent, bias = (int64(to_bf16(high)) + (1 << (7 - below))) >> 7, 127
    elif kind == F16:
        exponent, bias = (int64(to_f16(high)) + (1 << (10 - below))) >> 10, 15
    else:
        exponent, bias = (int64(bits_of(high)) + (1 << (23 - below))) >> 23, 127
    if exponent:
        largest = 8 if settings.bits == 8 else 2
        exponent = min(max(exponent + int64(127 - bias - largest), int64(0)), int64(254))
    return from_e8m0(uint8(exponent)), float32(exponent)


@merged
def _rounded(weight: float32, quotient: float32, scale: float32) -> tuple[uint8, float32]:
    """The code of a weight in E2M3, and what a reader computes; all keep their sign."""
    code, rounded = rounded_e2m3(float_of(bits_of(quotient) & _MAGNITUDE))
    sign = bits_of(weight) & _SIGN
    value = float_of(bits_of(float32(rounded * scale)) | sign)
    return uint8(code | (sign >> uint32(26))), value


@merged
def _value_of(
    weight: float32,
    quotient: float32,
    scale: float32,
    mark: float32,  # noqa: ARG001
    settings: KernelSettings,  # noqa: ARG001
    kind: int,  # noqa: ARG001
) -> float32:
    return _rounded(weight, quotient, scale)[1]


_add_e2m1, _add_e2m3 = error_adder(e2m1_value_of), error_adder(_value_of)


@merged
def _add_errors(
    work: SearchBuffers,
    count: int,
    settings: KernelSettings,
    kind: int,
    factor: float32,
    first: int,
) -> None:
    if settings.bits == 8:
        add_e4m3(work, count, settings, kind, factor, first)
    elif settings.bits == 6:
        _add_e2m3(work, count, settings, kind, factor, first)
    else:
        _add_e2m1(work, count, settings, kind, factor, first)


@merged
def _ends_of(
    scale: float32,
    mark: float32,  # noqa: ARG001
    settings: KernelSettings,
) -> tuple[float32, float32]:
    """The lowest and the highest value of a code, or what is farther out."""
    most = float32((E4M3_MAX if settings.bits == 8 else E2M3_MAX) * scale)
    return float32(-most), most


@inlined
def _round_e2m3(work: PieceBuffers, count: int) -> None:
    """Quotients to codes and values."""
    for i in range(count):
        weight = work.weights[i]
        code, value = _rounded(weight, work.values[i], work.scales[i])
        work.codes[i] = code
        work.values[i] = value
        work.errors[i] += squared(float32(value - weight))
        work.energies[i] += squared(weight)


@inlined
def _read_e2m3(work: PieceBuffers, count: int) -> None:
    """Codes to values, and squares of half the distance to the next larger magnitude."""
    for i in range(count):
        value = from_e2m3(work.codes[i])
        work.values[i] = value
        half = float32(float_of(bits_of(value) & _EXPONENT) * _SIXTEENTH)
        half = half if half > _SIXTEENTH else _SIXTEENTH  # noqa: FURB136
        work.squares[i] = half * half


@inlined
def _encode(work: PieceBuffers, count: int, settings: KernelSettings) -> None:
    if settings.bits == 8:
        encode_e4m3(work, count, settings.quotient)
    elif settings.bits == 6:
        divide(work, count, settings.quotient)
        _round_e2m3(work, count)
    else:
        encode_e2m1(work, count, settings.quotient)


@inlined
def _decode(work: PieceBuffers, count: int, settings: KernelSettings) -> float32:
    if settings.bits == 8:
        read_e4m3(work, count)
    elif settings.bits == 6:
        _read_e2m3(work, count)
    else:
        read_e2m1(work, count)
    return float32(0)


_SEARCH = searcher("mx", _scale_of, _ends_of, _add_errors)
KERNELS = kernels("mx", _scale_of, _encode, _SEARCH, _decode)
