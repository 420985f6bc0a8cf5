"""From the codes of a quantized weight to floats, whatever format they come from.

Every format is brought to one form: a stream of codes of some bits, what each of them stands for,
and a scale, perhaps with a zero point, for each tile:

    weight[i, j] = (element[code[i, j]] - zero[tile]) * scale[tile]

perhaps times a factor of the column, in float32, rounded once to what is asked for. Elements: E4M3,
E2M1 and E8M0 of the OCP Microscaling Formats specification 1.0, section 5.

A row goes through one short loop after another, each of which the compiler makes of vectors: so
elements are computed rather than looked up, and tiles are slices, whose indices are known not to be
negative.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import float32, int32, int64, uint8, uint16, uint32, uint64

from ctcli.ops.bits import to_floats
from ctcli.ops.elements import (
    BF16,
    F32,
    KINDS,
    bits_of,
    float_of,
    from_e2m1,
    from_e4m3,
    from_e8m0,
)
from ctcli.ops.jit import kernel, merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MAGNITUDE, _NAN = uint32(0x7FFFFFFF), uint32(0x7FC00000)
# What a float32's bits have to be below to be finite when it is rounded: to nearest, ties to even.
_INFINITE, _INFINITE_BF16 = uint32(0x7F800000), uint32(0x7F7F8000)
_INFINITE_F16 = uint32(0x477FF000)
# Those of the least normal F16, 2**-14, and what exponents of F16 are smaller by.
_NORMAL_F16, _LEAST_F16, _HALF = uint32(0x38800000), uint32(112 << 23), float32(0.5)
_E4M3_NAN = uint8(0x7F)
# How elements come from codes.
_TABLE, _INTEGER, _E4M3, _E2M1 = 0, 1, 2, 3


class Elements(NamedTuple):
    """What the codes of a format stand for.

    Attributes:
        table: float32, by code.
        rule: by what arithmetic they come from codes, where it is not the table.
        flipped: of integers, the bits that are flipped,
        less: and what is then subtracted.
    """

    table: Array
    rule: int = _TABLE
    flipped: int = 0
    less: int = 0


class Codes(NamedTuple):
    """Some rows of a quantized weight.

    Attributes:
        stream: uint8 [rows, bytes]: code j of a row in its bits j * bits to (j + 1) * bits, the
            least significant first.
        bits: of a code, 1 to 8.
        elements: what they stand for.
        scales: float32 [row tiles, column tiles].
        zeros: likewise; None: all are zero.
        tile: rows and columns that share a scale.
        factors: float32 [columns]; None: all are one.
    """

    stream: Array
    bits: int
    elements: Elements
    scales: Array
    zeros: Array | None
    tile: tuple[int, int]
    factors: Array | None = None


def decoded(codes: Codes, columns: int, target: str) -> tuple[Array, bool]:
    """The weights that codes stand for.

    Args:
        codes: of some rows.
        columns: how many each has.
        target: safetensors tag of what they are rounded to: BF16, F16 or F32.

    Returns:
        [rows, columns], float32 or the bits of 16-bit floats; and whether all are finite.
    """
    stream, nothing = np.ascontiguousarray(codes.stream), (1, 0)
    shape, is_wide = (len(stream), columns), target == "F32"
    wide = np.empty(shape if is_wide else nothing, np.float32)
    short = np.empty(nothing if is_wide else shape, np.uint16)
    zeros = np.empty((1, 0), np.float32) if codes.zeros is None else codes.zeros
    factors = np.empty(0, np.float32) if codes.factors is None else codes.factors
    is_finite = _decode(
        stream,
        codes.bits,
        *codes.elements,
        np.ascontiguousarray(codes.scales, np.float32),
        np.ascontiguousarray(zeros, np.float32),
        np.ascontiguousarray(factors, np.float32),
        *codes.tile,
        np.empty(columns, np.float32),
        np.empty(columns, np.uint8),
        wide,
        short,
        KINDS[target],
    )
    return (wide if is_wide else short), bool(is_finite)


@cache
def e4m3_elements() -> Elements:
    """The values of E4M3 codes; those of NaN are NaN."""
    table = np.array([from_e4m3(uint8(code)) for code in range(256)], np.float32)
    table[[0x7F, 0xFF]] = np.nan
    return Elements(table, _E4M3)


@cache
def e2m1_elements() -> Elements:
    """The values of E2M1 codes."""
    table = np.array([from_e2m1(uint8(code)) for code in range(16)], np.float32)
    return Elements(table, _E2M1)


@cache
def float6_elements(exponent_bits: int) -> Elements:
    """The values of E2M3 or E3M2 codes: a sign, an exponent of so many bits, and a mantissa."""
    codes, mantissa_bits = np.arange(64), 5 - exponent_bits
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    magnitude = np.ldexp(mantissa + (exponent > 0), np.maximum(exponent, 1) - bias)
    return Elements(np.copysign(magnitude, np.where(codes < 32, 1.0, -1.0)).astype(np.float32))


@cache
def integer_elements(bits: int, zero: int) -> Elements:
    """Unsigned integers of some bits less a zero point that all have in common."""
    table = np.arange(2**bits, dtype=np.float32) - np.float32(zero)
    return Elements(table, _INTEGER, less=zero)


@cache
def signed_elements(bits: int = 8) -> Elements:
    """The values of integers of some bits in two's complement."""
    half = 2 ** (bits - 1)
    table = ((np.arange(2**bits) ^ half) - half).astype(np.float32)
    return Elements(table, _INTEGER, half, half)


@cache
def _e8m0_table() -> Array:
    table = np.array([from_e8m0(uint8(code)) for code in range(256)], np.float32)
    table[255] = np.nan
    return table


def scales_of(block: Array, tag: str) -> Array:
    """Stored scales as float32 numbers.

    Args:
        block: [row tiles, column tiles] or one dimension less, as they were read.
        tag: their dtype; U8 and F8_E8M0 are biased exponents of powers of two.
    """
    if tag in ("U8", "F8_E8M0"):
        return _e8m0_table()[block]
    if tag == "F8_E4M3":
        return e4m3_elements().table[block]
    found: Array = to_floats(block, tag, np.float32)
    return found


def row_pairs(packed: Array) -> Array:
    """Codes of four bits from bytes that hold two rows, the first in the low nibble.

    Args:
        packed: uint8 [rows / 2, columns].

    Returns:
        uint8 [rows, columns].
    """
    codes = np.empty((2 * packed.shape[0], packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[0::2])
    np.right_shift(packed, 4, out=codes[1::2])
    return codes


@merged
def _unpack(packed: Array, bits: int, codes: Array) -> None:
    """A row's codes of less than eight bits, one in each byte."""
    columns, mask = len(codes), uint32((1 << bits) - 1)
    if bits == 4:
        for j in range(columns // 2):
            codes[2 * j] = packed[j] & uint8(15)
            codes[2 * j + 1] = packed[j] >> uint8(4)
        if columns % 2:
            codes[columns - 1] = packed[columns // 2] & uint8(15)
    else:
        whole = columns // 8
        for i in range(whole):
            taken, given = packed[i * bits : (i + 1) * bits], codes[8 * i : 8 * i + 8]
            word = uint64(0)
            for k in range(bits):
                word |= uint64(taken[k]) << uint64(8 * k)
            for k in range(8):
                given[k] = uint8(word >> uint64(bits * k)) & uint8(mask)
        for j in range(8 * whole, columns):
            place = int64(j) * bits
            first = place >> 3
            pair = uint32(packed[first])
            if first + 1 < len(packed):
                pair |= uint32(packed[first + 1]) << uint32(8)
            codes[j] = uint8((pair >> uint32(place & 7)) & mask)


@merged
def _elements(codes: Array, table: Array, rule: int, flipped: int, less: int, line: Array) -> None:
    """What a row's codes stand for."""
    if rule == _INTEGER:
        flip, offset = uint8(flipped), float32(less)
        for j in range(len(line)):
            line[j] = float32(float32(int32(codes[j] ^ flip)) - offset)
    elif rule == _E4M3:
        for j in range(len(line)):
            magnitude = codes[j] & _E4M3_NAN
            line[j] = from_e4m3(codes[j]) if magnitude != _E4M3_NAN else float_of(_NAN)
    elif rule == _E2M1:
        for j in range(len(line)):
            line[j] = from_e2m1(codes[j])
    else:
        for j in range(len(line)):
            line[j] = table[codes[j]]


@merged
def _scale(line: Array, scales: Array, zeros: Array, width: int) -> None:
    """A row's elements less zero points, if there are any, and times scales, of so many each."""
    columns = len(line)
    if width == 1:
        if len(zeros):
            for j in range(columns):
                line[j] = float32(line[j] - zeros[j])
        for j in range(columns):
            line[j] = float32(line[j] * scales[j])
        return
    for across in range((columns + width - 1) // width):
        scale = scales[across]
        tile = line[across * width : min((across + 1) * width, columns)]
        if len(zeros):
            zero = zeros[across]
            for j in range(len(tile)):
                tile[j] = float32(float32(tile[j] - zero) * scale)
        else:
            for j in range(len(tile)):
                tile[j] = float32(tile[j] * scale)


@merged
def _round(line: Array, kind: int, short: Array) -> bool:
    """A row rounded to BF16 or F16, except for F32; whether all of it is finite."""
    largest = uint32(0)
    for j in range(len(line)):
        magnitude = uint32(bits_of(line[j]) & _MAGNITUDE)
        largest = magnitude if magnitude > largest else largest  # noqa: FURB136 (vectors)
    if kind == F32:
        return bool(largest < _INFINITE)
    if kind == BF16:
        for j in range(len(line)):
            bits = bits_of(line[j])
            odd = uint32(bits >> uint32(16)) & uint32(1)
            short[j] = uint16(uint32(bits + uint32(0x7FFF) + odd) >> uint32(16))
        return bool(largest < _INFINITE_BF16)
    for j in range(len(line)):
        short[j] = _finite_to_f16(line[j])
    return bool(largest < _INFINITE_F16)


@merged
def _finite_to_f16(x: float32) -> uint16:
    """The bits of a float32 rounded to F16, where these are finite; see `elements.to_f16`."""
    bits = bits_of(x)
    magnitude = uint32(bits & _MAGNITUDE)
    odd = uint32(magnitude >> uint32(13)) & uint32(1)
    normal = uint32(uint32(magnitude + uint32(0xFFF) + odd) - _LEAST_F16) >> uint32(13)
    subnormal = uint32(bits_of(float32(float_of(magnitude) + _HALF)) - bits_of(_HALF))
    found = uint32(subnormal) if magnitude < _NORMAL_F16 else uint32(normal)
    return uint16(found | uint32(uint32(bits >> uint32(16)) & uint32(0x8000)))


@kernel
def _decode(
    stream: Array,
    bits: int,
    table: Array,
    rule: int,
    flipped: int,
    less: int,
    scales: Array,
    zeros: Array,
    factors: Array,
    height: int,
    width: int,
    line: Array,
    codes: Array,
    wide: Array,
    short: Array,
    kind: int,
) -> bool:
    """Fill `wide`, or `short` with floats of a kind; whether all of it is finite.

    `line` and `codes` are scratch of a row's length.
    """
    is_finite = True
    for row in range(len(stream)):
        down = row // height
        floats = wide[row] if kind == F32 else line
        found = stream[row] if bits == 8 else codes
        if bits != 8:
            _unpack(stream[row], bits, codes)
        _elements(found, table, rule, flipped, less, floats)
        _scale(floats, scales[down], zeros[min(down, len(zeros) - 1)], width)
        if len(factors):
            for j in range(len(floats)):
                floats[j] = float32(floats[j] * factors[j])
        is_finite &= _round(floats, kind, short[0 if kind == F32 else row])
    return is_finite
