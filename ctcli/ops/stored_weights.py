"""Quantizing stored weights with numpy: the bytes of `ops.float8` and `ops.integers`, and no torch.

For symmetric schemes with scales of the dtype of the weight, each for the range of its own tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctcli.lazy.dtypes import DTYPES
from ctcli.ops.bits import from_floats, to_floats

if TYPE_CHECKING:
    from ctcli.ops.bits import Bits, Floats

# w / scale, and whether a scale is too small for all digits of its dtype -> the codes; the
# quotients become what the codes stand for.
Encode = Callable[["Floats", bool], "Bits"]

_E4M3 = DTYPES["F8_E4M3"]
E4M3_MAX = _E4M3.largest
_LARGEST_BUFFER = 10_000_000


@dataclass(frozen=True)
class Rounding:
    """From a weight to codes.

    Attributes:
        dtype: safetensors tag of the weight's dtype: BF16, F16 or F32.
        tile: rows and columns that share a scale; None stands for all there are.
        divisor: scale = max|w| / divisor.
        encode: how to round quotients.
        rounds_quotients: w / scale is rounded to the weight's dtype first.
    """

    dtype: str
    tile: tuple[int | None, int | None]
    divisor: float
    encode: Encode
    rounds_quotients: bool


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """Some rows of a weight.

    Attributes:
        codes: [rows, columns] uint8; of integers, their two's complement.
        scales: in the weight's dtype, [row tiles, column tiles].
        error: sum of squares of the error of what a reader computes, in float32.
        energy: sum of squares of the weight; NaN or infinite only where it is.
    """

    codes: Bits
    scales: Bits
    error: float
    energy: float


def quantize(bits: Bits, rounding: Rounding) -> QuantizedRows:
    """Quantize [rows, columns] as stored: whole tiles, but for the last ones of the weight."""
    rows, columns = bits.shape
    height, width = rounding.tile[0] or rows, rounding.tile[1] or columns
    padded: Bits = bits
    if rows % height or columns % width:
        padded = np.pad(bits, ((0, -rows % height), (0, -columns % width)))
    tiles, tag = padded.reshape(-1, height, padded.shape[1]), rounding.dtype
    # Numbers next to the largest of float32 may overflow; NaN and infinities show in the energy.
    with np.errstate(over="ignore", invalid="ignore"), _buffer_of_a_row(tiles.shape[2]):
        scales = _positive(tile_magnitudes(tiles, width, tag) / np.float32(rounding.divisor), tag)
        by_column = scales if scales.shape[1] == 1 else np.repeat(scales, width, axis=1)
        scale = by_column[:, np.newaxis]
        weight = to_floats(tiles, tag, np.float32)
        values: Floats = weight / scale
        if rounding.rounds_quotients:
            values = to_floats(from_floats(values, tag), tag, np.float32)
        is_coarse = bool(scales.min() < DTYPES[tag].smallest_normal)
        codes = rounding.encode(values, is_coarse).reshape(padded.shape)
        values *= scale
        values -= weight
        return QuantizedRows(
            np.ascontiguousarray(codes[:rows, :columns]),
            from_floats(scales, tag),
            sum_of_squares(values),
            sum_of_squares(weight),
        )


def e4m3(quotients: Floats, is_coarse: bool) -> Bits:
    """Saturate to +-448 and round to E4M3; -0 stays -0. An `Encode` for divisor 448.

    Where no scale is coarse, quotients must be below 464, from where on rounding has to saturate:
    scales are then rounded by less than the 3 % that this is above 448.

    With 2**e <= |x|, E4M3 has steps of 2**e / 8 (2**-9 below 2**-6), which is the spacing of
    float32 at 3 * 2**(e+19): adding and subtracting that number rounds, ties to even.
    """
    if is_coarse:
        np.clip(quotients, -E4M3_MAX, E4M3_MAX, out=quotients)
    signs = np.signbit(quotients).view(np.uint8)
    signs *= 128
    bits = quotients.view(np.uint32) & 0x7F800000
    magic = bits.view(np.float32)
    # The upper bound does nothing; np.maximum takes three times as long.
    np.clip(magic, _E4M3.smallest_normal, 512.0, out=magic)
    bits += (20 << 23) | (1 << 22)  # to the bits of 3 * 2**19 times as much
    quotients += magic
    quotients -= magic
    # 2**-126 is float32's smallest normal number: it counts up from there as E4M3 does from 2**-6.
    np.multiply(quotients, np.float32(2.0**-120), out=magic)
    bits >>= 20
    codes = bits.astype(np.uint8)
    codes |= signs
    return codes


def integers(bits: int, quotients: Floats, _is_coarse: bool) -> Bits:
    """Saturate and round to integers of so many bits, two's complement. An `Encode`."""
    lowest = -(2.0 ** (bits - 1))
    np.clip(quotients, lowest, -lowest - 1, out=quotients)
    np.rint(quotients, out=quotients)
    return quotients.astype(np.int8).view(np.uint8)


def tile_magnitudes(tiles: Bits, width: int, tag: str) -> Floats:
    """Largest magnitude of each tile; not finite where one of its values is not.

    Args:
        tiles: [row tiles, rows of a tile, columns] in a dtype.
        width: columns of a tile.
        tag: safetensors tag of the dtype.

    Returns:
        [row tiles, column tiles] float32.
    """
    # Magnitudes are ordered as their bits are, and NaN above all.
    magnitudes = tiles & np.iinfo(f"i{tiles.itemsize}").max
    by_column = magnitudes.max(axis=1) if tiles.shape[1] > 1 else magnitudes
    return to_floats(by_column.reshape(len(tiles), -1, width).max(axis=2), tag, np.float32)


def sum_of_squares(x: Floats) -> float:
    """Sum of squares of float32 values, in float32 along the last axis unless that overflows."""
    total = float(np.matmul(x[..., np.newaxis, :], x[..., np.newaxis]).sum(dtype=np.float64))
    return total if np.isfinite(total) else float(np.square(x, dtype=np.float64).sum())


@contextmanager
def _buffer_of_a_row(columns: int) -> Iterator[None]:
    """With a buffer of more than a row, numpy first copies what is the same for all columns.

    Arithmetic with scales takes twice as long then. The setting is this thread's own.
    """
    before = np.setbufsize(min(max(columns // 16, 1) * 16, _LARGEST_BUFFER))
    try:
        yield
    finally:
        np.setbufsize(before)


def _positive(scales: Floats, tag: str) -> Floats:
    """Scales rounded to a dtype, in float32, with its epsilon for zero."""
    rounded = to_floats(from_floats(scales, tag), tag, np.float32)
    rounded[rounded == 0] = DTYPES[tag].epsilon
    return rounded
