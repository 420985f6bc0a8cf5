"""FP8 of stored weights with numpy: the bytes that `ops.float8` makes, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctcli.ops.bits import from_floats, sum_of_squares, tile_magnitudes, to_floats

if TYPE_CHECKING:
    from ctcli.ops.bits import Bits, Floats

_E4M3_MAX, _E4M3_SMALLEST_NORMAL = 448.0, 2.0**-6
# What an empty tile's scale is: the epsilon of its dtype.
_EPSILONS = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
# Scales from these on are rounded by less than the 3 % that lie between 448 and 464, from where on
# E4M3 has to saturate.
_SMALLEST_NORMAL = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126}


@dataclass(frozen=True, eq=False)
class Float8Rows:
    """Some rows of a weight in FP8.

    Attributes:
        codes: E4M3, [rows, columns] uint8.
        scales: in the weight's dtype, [row tiles, column tiles].
        error: sum of squares of the error of what a reader computes, in float32.
        energy: sum of squares of the weight; NaN or infinite only where it is.
    """

    codes: Bits
    scales: Bits
    error: float
    energy: float


@np.errstate(over="ignore", invalid="ignore")  # of what is next to the largest float32, or beyond
def quantize(bits: Bits, tag: str, tile: tuple[int, int], rounds_quotients: bool) -> Float8Rows:
    """Round to E4M3 with scale = max|w| / 448.

    Args:
        bits: [rows, columns] as stored; whole tiles, but for the last ones of the weight.
        tag: safetensors tag of the weight's dtype: BF16, F16 or F32.
        tile: rows and columns that share a scale.
        rounds_quotients: w / scale is rounded to the weight's dtype first.
    """
    (rows, columns), (height, width) = bits.shape, tile
    padded: Bits = bits
    if rows % height or columns % width:
        padded = np.pad(bits, ((0, -rows % height), (0, -columns % width)))
    tiles = padded.reshape(-1, height, padded.shape[1])
    scales = _positive(tile_magnitudes(tiles, width, tag) / np.float32(_E4M3_MAX), tag)
    # As many as there are columns: numpy takes twice as long where it has to repeat them itself.
    scale = np.repeat(scales, width, axis=1)[:, np.newaxis]
    weight = to_floats(tiles, tag, np.float32)
    values: Floats = weight / scale
    if rounds_quotients:
        values = to_floats(from_floats(values, tag), tag, np.float32)
    if scales.min() < _SMALLEST_NORMAL[tag]:
        np.clip(values, -_E4M3_MAX, _E4M3_MAX, out=values)
    codes = to_e4m3(values).reshape(padded.shape)
    values *= scale
    values -= weight
    return Float8Rows(
        np.ascontiguousarray(codes[:rows, :columns]),
        from_floats(scales, tag),
        sum_of_squares(values),
        sum_of_squares(weight),
    )


def to_e4m3(x: Floats) -> Bits:
    """Round float32 below 464 in magnitude to E4M3, ties to even; -0 stays -0.

    With 2**e <= |x|, E4M3 has steps of 2**e / 8 (2**-9 below 2**-6), which is the spacing of
    float32 at 3 * 2**(e+19): adding and subtracting that number rounds.

    Returns:
        The codes, uint8; x becomes their values.
    """
    signs = np.signbit(x).view(np.uint8)
    signs *= 128
    bits = x.view(np.uint32) & 0x7F800000
    magic = bits.view(np.float32)
    # The upper bound does nothing; np.maximum takes three times as long.
    np.clip(magic, _E4M3_SMALLEST_NORMAL, 512.0, out=magic)
    bits += (20 << 23) | (1 << 22)  # to the bits of 3 * 2**19 times as much
    x += magic
    x -= magic
    # 2**-126 is float32's smallest normal number: it counts up from there as E4M3 does from 2**-6.
    np.multiply(x, np.float32(2.0**-120), out=magic)
    bits >>= 20
    codes = bits.astype(np.uint8)
    codes |= signs
    return codes


def _positive(scales: Floats, tag: str) -> Floats:
    """Scales rounded to a dtype, in float32, with its epsilon for zero."""
    rounded = to_floats(from_floats(scales, tag), tag, np.float32)
    rounded[rounded == 0] = _EPSILONS[tag]
    return rounded
