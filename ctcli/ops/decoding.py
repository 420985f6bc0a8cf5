"""From the codes of a quantized weight to floats, whatever format they come from.

Every format is brought to one form: a stream of codes of some bits, a table of what each stands
for, and a scale, perhaps with a zero point, for each tile:

    weight[i, j] = (table[code[i, j]] - zero[tile]) * scale[tile]

perhaps times a factor of the column, in float32, rounded once to what is asked for. Elements: E4M3,
E2M1 and E8M0 of the OCP Microscaling Formats specification 1.0, section 5.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import float32, int64, uint8, uint32

from ctcli.ops.bits import to_floats
from ctcli.ops.elements import (
    BF16,
    F32,
    KINDS,
    bits_of,
    from_e2m1,
    from_e4m3,
    from_e8m0,
    to_bf16,
    to_f16,
)
from ctcli.ops.jit import kernel, merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_EXPONENT = uint32(0x7F800000)
_BF16_EXPONENT, _F16_EXPONENT = uint32(0x7F80), uint32(0x7C00)


class Codes(NamedTuple):
    """Some rows of a quantized weight.

    Attributes:
        stream: uint8 [rows, bytes]: code j of a row in its bits j * bits to (j + 1) * bits, the
            least significant first.
        bits: of a code, 1 to 8.
        table: float32 [2 ** bits], or as many as there are codes.
        scales: float32 [row tiles, column tiles].
        zeros: likewise; None: all are zero.
        tile: rows and columns that share a scale.
        factors: float32 [columns]; None: all are one.
    """

    stream: Array
    bits: int
    table: Array
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
    zeros = np.empty((0, 0), np.float32) if codes.zeros is None else codes.zeros
    factors = np.empty(0, np.float32) if codes.factors is None else codes.factors
    is_finite = _decode(
        stream,
        codes.bits,
        codes.table,
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
def e4m3_table() -> Array:
    """The values of E4M3 codes; those of NaN are NaN."""
    table = np.array([from_e4m3(uint8(code)) for code in range(256)], np.float32)
    table[[0x7F, 0xFF]] = np.nan
    return table


@cache
def e2m1_table() -> Array:
    """The values of E2M1 codes."""
    return np.array([from_e2m1(uint8(code)) for code in range(16)], np.float32)


@cache
def float6_table(exponent_bits: int) -> Array:
    """The values of E2M3 or E3M2 codes: a sign, an exponent of so many bits, and a mantissa."""
    codes, mantissa_bits = np.arange(64), 5 - exponent_bits
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    magnitude = np.ldexp(mantissa + (exponent > 0), np.maximum(exponent, 1) - bias)
    found: Array = np.copysign(magnitude, np.where(codes < 32, 1.0, -1.0)).astype(np.float32)
    return found


@cache
def integer_table(bits: int, zero: int) -> Array:
    """Unsigned integers of some bits less a zero point that all have in common."""
    return np.arange(2**bits, dtype=np.float32) - np.float32(zero)


@cache
def signed_table(bits: int = 8) -> Array:
    """The values of integers of some bits in two's complement."""
    codes, half = np.arange(2**bits, dtype=np.float32), np.float32(2 ** (bits - 1))
    return np.where(codes < half, codes, codes - 2 * half).astype(np.float32)


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
        return e4m3_table()[block]
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
    """A row's codes, one in each byte."""
    columns, mask = len(codes), uint32((1 << bits) - 1)
    if bits == 8:
        for j in range(columns):
            codes[j] = packed[j]
    elif bits == 4:
        for j in range(columns // 2):
            codes[2 * j] = packed[j] & uint8(15)
            codes[2 * j + 1] = packed[j] >> uint8(4)
        if columns % 2:
            codes[columns - 1] = packed[columns // 2] & uint8(15)
    else:
        for j in range(columns):
            place = int64(j) * bits
            first = place >> 3
            pair = uint32(packed[first])
            if first + 1 < len(packed):
                pair |= uint32(packed[first + 1]) << uint32(8)
            codes[j] = uint8((pair >> uint32(place & 7)) & mask)


@merged
def _round(line: Array, kind: int, wide: Array, short: Array) -> uint32:
    """A row as it is written, in one of the two; 0 if all of it is finite."""
    bad = uint32(0)
    if kind == F32:
        for j in range(len(line)):
            bad |= uint32((bits_of(line[j]) & _EXPONENT) == _EXPONENT)
            wide[j] = line[j]
    elif kind == BF16:
        for j in range(len(line)):
            short[j] = to_bf16(line[j])
            bad |= uint32((uint32(short[j]) & _BF16_EXPONENT) == _BF16_EXPONENT)
    else:
        for j in range(len(line)):
            short[j] = to_f16(line[j])
            bad |= uint32((uint32(short[j]) & _F16_EXPONENT) == _F16_EXPONENT)
    return bad


@kernel
def _decode(
    stream: Array,
    bits: int,
    table: Array,
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
    columns, bad = len(line), uint32(0)
    for row in range(len(stream)):
        down = row // height
        _unpack(stream[row], bits, codes)
        if width == 1 and not zeros.size:
            for j in range(columns):
                line[j] = float32(table[codes[j]] * scales[down, j])
        else:
            for across in range((columns + width - 1) // width):
                scale = scales[down, across]
                zero = zeros[down, across] if zeros.size else float32(0)
                for j in range(across * width, min((across + 1) * width, columns)):
                    line[j] = float32(float32(table[codes[j]] - zero) * scale)
        if factors.size:
            for j in range(columns):
                line[j] = float32(line[j] * factors[j])
        at = 0 if kind == F32 else row
        bad |= _round(line, kind, wide[row - at], short[at])
    return bool(bad == uint32(0))
