"""Rounding weights to E4M3 (FP8) with floating-point scales: scale = max|w| / 448."""

from __future__ import annotations

from numpy import float32, uint8, uint32

from ctcli.ops.elements import (
    E4M3_MAX,
    F32,
    bits_of,
    float_of,
    from_e4m3,
    round_scale,
    rounded_e4m3,
    squared,
)
from ctcli.ops.jit import inlined, merged
from ctcli.ops.loops import kernels
from ctcli.ops.pieces import PieceBuffers, divide
from ctcli.ops.searches import error_adder, searcher
from ctcli.ops.tiles import KernelSettings

_MAGNITUDE, _SIGN = uint32(0x7FFFFFFF), uint32(0x80000000)
_SIXTEENTH, _SMALLEST = float32(2.0**-4), float32(2.0**-10)
_EXPONENT, _NAN = uint32(0x7F800000), uint32(0x7F)


@merged
def _scale_of(
    low: float32,  # noqa: ARG001
    high: float32,
    settings: KernelSettings,  # noqa: ARG001
    kind: int,
) -> tuple[float32, float32]:
    scale = round_scale(float32(high / E4M3_MAX), kind)
    return scale, float32(0)


@merged
def _rounded(weight: float32, quotient: float32, scale: float32) -> tuple[uint8, float32]:
    """The code of a weight, and what a reader computes."""
    code, rounded = rounded_e4m3(float_of(bits_of(quotient) & _MAGNITUDE))
    sign = bits_of(weight) & _SIGN
    code = uint32(code | (sign >> uint32(24)))
    value = float_of(bits_of(float32(rounded * scale)) | sign)
    return uint8(code if quotient == quotient else _NAN), value  # noqa: PLR0124


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


add_errors = error_adder(_value_of)


@merged
def ends_of(
    scale: float32,
    mark: float32,  # noqa: ARG001
    settings: KernelSettings,  # noqa: ARG001
) -> tuple[float32, float32]:
    """The lowest and the highest value of a code; E4M3, also MXFP8's."""
    most = float32(E4M3_MAX * scale)
    return float32(-most), most


@inlined
def encode_elements(work: PieceBuffers, count: int, kind: int) -> None:
    """Weights to codes and values, their quotients rounded to a dtype; E4M3, also MXFP8's."""
    if kind == F32:
        _round(work, count, False)
    else:
        divide(work, count, kind)
        _round(work, count, True)


@inlined
def _round(work: PieceBuffers, count: int, is_divided: bool) -> None:
    """The same; whether quotients are in the values already."""
    weights, scales, values, codes = work.weights, work.scales, work.values, work.codes
    errors, energies = work.errors, work.energies
    for i in range(count):
        weight, scale = weights[i], scales[i]
        quotient = values[i] if is_divided else float32(weight / scale)
        code, value = _rounded(weight, quotient, scale)
        codes[i] = code
        values[i] = value
        errors[i] += squared(float32(value - weight))
        energies[i] += squared(weight)


@inlined
def read_elements(work: PieceBuffers, count: int) -> None:
    """Codes to values, and squares of half the distance to the next larger magnitude."""
    for i in range(count):
        value = from_e4m3(work.codes[i])
        work.values[i] = value
        half = float32(float_of(bits_of(value) & _EXPONENT) * _SIXTEENTH)
        half = half if half > _SMALLEST else _SMALLEST  # noqa: FURB136
        work.squares[i] = half * half


@inlined
def _encode(work: PieceBuffers, count: int, settings: KernelSettings) -> None:
    encode_elements(work, count, settings.quotient)


@inlined
def _decode(work: PieceBuffers, count: int, settings: KernelSettings) -> float32:  # noqa: ARG001
    read_elements(work, count)
    return float32(0)


_SEARCH = searcher("float8", _scale_of, ends_of, add_errors)
KERNELS = kernels("float8", _scale_of, _encode, _SEARCH, _decode)
