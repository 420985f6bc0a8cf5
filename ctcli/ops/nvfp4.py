"""Rounding weights to E2M1 with an E4M3 scale for each group and a float32 scale above them.

global = 448 * 6 / max|w|; scale = e4m3(global * max|group| / 6); value = e2m1(w * global / scale).
The rounding steps are compressed-tensors': the reciprocal first, and everything up to the scale's
own rounding in the weight's dtype.
"""

from __future__ import annotations

from numpy import float32, uint8, uint32

from ctcli.ops.elements import (
    E2M1_MAX,
    F32,
    bits_of,
    float_of,
    from_e2m1,
    from_e4m3,
    round_to,
    rounded_e2m1,
    squared,
    to_e4m3,
)
from ctcli.ops.jit import inlined, merged
from ctcli.ops.loops import kernels
from ctcli.ops.pieces import PieceBuffers, divide
from ctcli.ops.searches import error_adder, searcher
from ctcli.ops.tiles import KernelSettings

_MAGNITUDE, _SIGN, _EXPONENT = uint32(0x7FFFFFFF), uint32(0x80000000), uint32(0x7F800000)
_ZERO, _QUARTER, _NAN = float32(0), float32(0.25), uint32(0xF)
_EIGHTH = uint8(0x20)  # the E4M3 code that stands for an empty group's scale, instead of zero


@merged
def _scale_of(
    low: float32,  # noqa: ARG001
    high: float32,
    settings: KernelSettings,
    kind: int,
) -> tuple[float32, float32]:
    """Returns the effective scale, and the code of the stored one."""
    code = to_e4m3(float32(round_to(float32(high / E2M1_MAX), kind) * settings.total))
    code = code if code & uint8(0x7F) else _EIGHTH
    return float32(from_e4m3(code) / settings.total), float32(code)


@merged
def _rounded(weight: float32, quotient: float32, scale: float32) -> tuple[uint8, float32]:
    """The code of a weight, and what a reader computes.

    Zero is 0, what rounds to it keeps its sign.
    """
    magnitude = float_of(bits_of(quotient) & _MAGNITUDE)
    code, rounded = rounded_e2m1(magnitude)
    sign = bits_of(weight) & _SIGN
    code = uint32(code | ((sign >> uint32(28)) if magnitude > _ZERO else uint32(0)))
    value = float_of(bits_of(float32(rounded * scale)) | sign)
    return uint8(code if magnitude == magnitude else _NAN), value  # noqa: PLR0124


@merged
def value_of(
    weight: float32,
    quotient: float32,
    scale: float32,
    mark: float32,  # noqa: ARG001
    settings: KernelSettings,  # noqa: ARG001
    kind: int,  # noqa: ARG001
) -> float32:
    """What a reader computes; E2M1, also MXFP4's."""
    return _rounded(weight, quotient, scale)[1]


@merged
def ends_of(
    scale: float32,
    mark: float32,  # noqa: ARG001
    settings: KernelSettings,  # noqa: ARG001
) -> tuple[float32, float32]:
    """The lowest and the highest value of a code; E2M1, also MXFP4's."""
    most = float32(E2M1_MAX * scale)
    return float32(-most), most


@inlined
def encode_elements(work: PieceBuffers, count: int, kind: int) -> None:
    """Weights to codes and values, their quotients rounded to a dtype; E2M1, also MXFP4's."""
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
        value = from_e2m1(work.codes[i])
        work.values[i] = value
        half = float32(float_of(bits_of(value) & _EXPONENT) * _QUARTER)
        half = half if half > _QUARTER else _QUARTER  # noqa: FURB136
        work.squares[i] = half * half


@inlined
def _encode(work: PieceBuffers, count: int, settings: KernelSettings) -> None:  # noqa: ARG001
    encode_elements(work, count, F32)


@inlined
def _decode(work: PieceBuffers, count: int, settings: KernelSettings) -> float32:  # noqa: ARG001
    read_elements(work, count)
    return float32(0)


_SEARCH = searcher("nvfp4", _scale_of, ends_of, error_adder(value_of, rounds=False))
KERNELS = kernels("nvfp4", _scale_of, _encode, _SEARCH, _decode)
