"""Rounding weights to integers of B bits, with a scale and perhaps a zero point.

Symmetric: scale = max|w| / ((2^B - 1) / 2), q = round(w / scale). Signed: scale = -m / 2^(B-1) with
m the element of largest magnitude, as GGUF's Q4_0 has it: m gets the lowest code, and nothing is
cut off by more than half a step. Asymmetric: the range, with zero in it, is divided in 2^B - 1
steps and a zero point z added: q = round(w / scale + z).
"""

from __future__ import annotations

from numpy import float32, int8, int32, uint8, uint32

from ctcli.ops.elements import F32, bits_of, round_scale, round_to, squared
from ctcli.ops.jit import inlined, merged
from ctcli.ops.loops import kernels
from ctcli.ops.pieces import PieceBuffers, divide, round_all
from ctcli.ops.searches import SearchBuffers, error_adder, searcher
from ctcli.ops.tiles import KernelSettings

# Float32 next to this has steps of one; its bits end in those of the integer that was added.
_MAGIC = float32(1.5 * 2.0**23)
_ZERO, _QUARTER, _ONE = float32(0), float32(0.25), float32(1)


@merged
def _shifted(x: float32, lowest: float32, highest: float32) -> float32:
    """The nearest integer of a range, ties to even, on top of _MAGIC; of NaN 0, as x86 has it."""
    x = _within(x, lowest, highest)
    return float32((x if x == x else _ZERO) + _MAGIC)  # noqa: PLR0124


@merged
def _within(x: float32, lowest: float32, highest: float32) -> float32:
    x = lowest if x < lowest else x  # noqa: FURB136 (NaN)
    return highest if x > highest else x  # noqa: FURB136


@merged
def _value(shifted: float32, zero: float32, scale: float32) -> float32:
    """What a reader computes from an integer on top of _MAGIC."""
    return float32(float32(float32(shifted - _MAGIC) - zero) * scale)


@merged
def _symmetric_value_of(
    weight: float32,  # noqa: ARG001
    quotient: float32,
    scale: float32,
    zero: float32,  # noqa: ARG001
    settings: KernelSettings,
    kind: int,  # noqa: ARG001
) -> float32:
    lowest = float32(-(1 << (settings.bits - 1)))
    inside = _within(quotient, lowest, float32(-lowest - _ONE))
    return _value(float32(inside + _MAGIC), _ZERO, scale)


@merged
def _asymmetric_value_of(
    weight: float32,  # noqa: ARG001
    quotient: float32,
    scale: float32,
    zero: float32,
    settings: KernelSettings,
    kind: int,
) -> float32:
    lowest, moved = float32(-(1 << (settings.bits - 1))), round_to(float32(quotient + zero), kind)
    inside = _within(moved, lowest, float32(-lowest - _ONE))
    return _value(float32(inside + _MAGIC), zero, scale)


_add_symmetric = error_adder(_symmetric_value_of)
_add_asymmetric = error_adder(_asymmetric_value_of)


@merged
def _add_errors(
    work: SearchBuffers,
    count: int,
    settings: KernelSettings,
    kind: int,
    factor: float32,
    first: int,
) -> None:
    if settings.symmetric:
        _add_symmetric(work, count, settings, kind, factor, first)
    else:
        _add_asymmetric(work, count, settings, kind, factor, first)


@merged
def _ends_of(scale: float32, zero: float32, settings: KernelSettings) -> tuple[float32, float32]:
    """The lowest and the highest value of a code."""
    half = float32(1 << (settings.bits - 1))
    first = float32(float32(-half - zero) * scale)
    last = float32(float32(half - _ONE - zero) * scale)
    return min(first, last), max(first, last)


@merged
def _scale_of(
    low: float32, high: float32, settings: KernelSettings, kind: int
) -> tuple[float32, float32]:
    steps = float32((1 << settings.bits) - 1)
    if settings.signed:
        extreme = low if -low >= high else high
        return round_scale(float32(-extreme / float32(1 << (settings.bits - 1))), kind), _ZERO
    if settings.symmetric:
        return round_scale(float32(high / float32(steps / float32(2))), kind), _ZERO
    lowest = float32(-(1 << (settings.bits - 1)))
    scale = round_to(float32(round_to(float32(high - low), kind) / steps), kind)
    # An empty group gives 0 / 0 here, which becomes 0.
    zero = round_to(float32(lowest - round_to(float32(low / scale), kind)), kind)
    return round_scale(scale, kind), float32(
        _shifted(zero, lowest, float32(lowest + steps)) - _MAGIC
    )


@inlined
def _encode(work: PieceBuffers, count: int, settings: KernelSettings) -> None:
    lowest = float32(-(1 << (settings.bits - 1)))
    if settings.quotient == F32:
        _encode_elements(work, count, lowest, settings.offset, False)
        return
    divide(work, count, settings.quotient)
    if not settings.symmetric:
        for i in range(count):
            work.values[i] += work.zeros[i]
        round_all(work.values, count, settings.quotient)
    _encode_elements(work, count, lowest, settings.offset, True)


@inlined
def _encode_elements(
    work: PieceBuffers, count: int, lowest: float32, offset: int, is_divided: bool
) -> None:
    """Weights to codes and values; whether quotients, and zero points, are in the values already.

    Where there are no zero points, they are zero.
    """
    weights, scales, zeros, values = work.weights, work.scales, work.zeros, work.values
    codes, errors, energies = work.codes, work.errors, work.energies
    highest, added = float32(-lowest - _ONE), uint32(offset)
    for i in range(count):
        weight, scale, zero = weights[i], scales[i], zeros[i]
        quotient = values[i] if is_divided else float32(float32(weight / scale) + zero)
        shifted = _shifted(quotient, lowest, highest)
        codes[i] = uint8(uint32(bits_of(shifted) + added) & uint32(0xFF))
        value = _value(shifted, zero, scale)
        values[i] = value
        errors[i] += squared(float32(value - weight))
        energies[i] += squared(weight)


@inlined
def _decode(work: PieceBuffers, count: int, settings: KernelSettings) -> float32:
    values, zeros, codes = work.values, work.zeros, work.codes
    offset = float32(settings.offset)
    if settings.offset:
        for i in range(count):
            values[i] = float32(int32(codes[i])) - offset
    else:  # two's complement
        for i in range(count):
            values[i] = float32(int32(int8(codes[i])))
    if not settings.symmetric:
        for i in range(count):
            values[i] -= zeros[i]
    return _QUARTER


_SEARCH = searcher("integers", _scale_of, _ends_of, _add_errors)
KERNELS = kernels("integers", _scale_of, _encode, _SEARCH, _decode)
