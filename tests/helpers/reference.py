"""What compressed-tensors stores for a weight, in plain numpy: slow, literal, nothing shared.

Arithmetic is in float32, each result rounded to the dtype D of the weight where that is said; an
element finds its scale by the numbers of its tile, so there is no padding and no reshaping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
Bits = NDArray[np.unsignedinteger[Any]]
EPSILON = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
SMALLEST_NORMAL = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126}
MANTISSA = {"BF16": 7, "F16": 10, "F32": 23}
BIAS = {"BF16": 127, "F16": 15, "F32": 127}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M3 = np.array([*range(8), *(2**e * (8 + m) for e in range(3) for m in range(8))], np.float32) / 8
# Codes 0 to 126 of E4M3; 127 is NaN.
E4M3 = np.array(
    [
        m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        for e in range(16)
        for m in range(8)
    ]
)[:127]


class Stored(NamedTuple):
    """A tensor as a file holds it: safetensors tag, and an array of the same bits and shape."""

    dtype: str
    array: NDArray[Any]


@dataclass(frozen=True)
class Arguments:
    """How to quantize.

    Attributes:
        kind: numeric family.
        bits: of an element.
        tile: rows and columns that share a scale, None for all there are.
        strategy: compressed-tensors' name of such tiles.
        symmetric: no zero point.
        packed: integers side by side in words, and not one in a byte.
        signed: the largest element gets the lowest code, by the sign of the scale.
        compute: `weight` rounds the quotient weight / scale to D, `float32` does not.
    """

    kind: Literal["int", "fp8", "nvfp4", "mx"]
    bits: int
    strategy: str
    tile: tuple[int | None, int | None]
    symmetric: bool = True
    packed: bool = False
    compute: str = "float32"
    signed: bool = False


class Quantized(NamedTuple):
    """The stored tensors, and what a reader of them computes in float32."""

    outputs: Mapping[str, Stored]
    values: F32


class Tiles:
    """Which tile each element belongs to."""

    def __init__(self, shape: tuple[int, ...], tile: tuple[int | None, int | None]) -> None:
        height, width = tile[0] or shape[0], tile[1] or shape[1]
        self.down = np.arange(shape[0])[:, None] // height  # [rows, 1]
        self.across = np.arange(shape[1])[None, :] // width  # [1, columns]
        self.count = (-(-shape[0] // height), -(-shape[1] // width))

    def bounds(self, weight: F32) -> tuple[F32, F32]:
        """Smallest and largest value of each tile, zero included: [tiles down, tiles across]."""
        low, high = np.zeros((2, *self.count), np.float32)
        np.minimum.at(low, (self.down, self.across), weight)
        np.maximum.at(high, (self.down, self.across), weight)
        return low, high

    def amax(self, weight: F32) -> F32:
        """Largest magnitude of each tile: [tiles down, tiles across]."""
        return self.bounds(np.abs(weight))[1]  # not -0, which has a large bit pattern

    def sums(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over each tile: [tiles down, tiles across]."""
        found = np.zeros(self.count)
        np.add.at(found, (self.down, self.across), x)
        return found

    def spread(self, of_tiles: NDArray[Any]) -> NDArray[Any]:
        """Each element's tile's value: [rows, columns]."""
        return of_tiles[self.down, self.across]


def between(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The halves between neighbours, exactly."""
    return (magnitudes[1:] + magnitudes[:-1]) / 2


def around(magnitudes: NDArray[np.float64]) -> F32:
    """What can go wrong: values, halves, their neighbours, the very small and large; both signs."""
    points = np.concatenate([magnitudes, between(magnitudes)]).astype(np.float32)
    sides = [np.nextafter(points, np.float32(end)) for end in (-np.inf, np.inf)]
    extremes = np.array([2.0**-149, 1e-30, 1e30, np.inf], np.float32)
    found = np.concatenate([points, *sides, extremes])
    return np.concatenate([found, -found])


def to_bits(x: F32, dtype: str) -> Bits:
    """Round float32 values to D, to nearest, ties to even; as bit patterns."""
    if dtype == "F32":
        return x.view(np.uint32)
    if dtype == "F16":
        return x.astype(np.float16).view(np.uint16)
    # Adding half a unit of bfloat16 carries into the upper half of the bits; one less where the
    # upper half is even, so that a tie stays there.
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def from_bits(bits: Bits, dtype: str) -> F32:
    """The values of bit patterns of D."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: ArrayLike, dtype: str) -> F32:
    """Round to D and keep as float32."""
    return from_bits(to_bits(np.asarray(x, np.float32), dtype), dtype)


def nearest(magnitudes: NDArray[np.float64], x: F32) -> NDArray[np.uint8]:
    """Which of some increasing magnitudes is nearest to |x|, ties to the even index; saturates."""
    middles, exact = between(magnitudes), np.abs(x.astype(np.float64))
    below = np.searchsorted(middles, exact, "left")
    above = np.searchsorted(middles, exact, "right")  # differs at a tie, by one
    return np.where(below % 2 == 0, below, above).astype(np.uint8)


def e4m3_codes(x: F32) -> NDArray[np.uint8]:
    """Saturate and round to E4M3; zeros keep their sign."""
    return nearest(E4M3, x) | np.where(np.signbit(x), 0x80, 0).astype(np.uint8)


def e4m3_values(codes: NDArray[np.uint8]) -> F32:
    """The values of E4M3 codes."""
    values: F32 = (E4M3[codes & 0x7F] * np.where(codes & 0x80, -1, 1)).astype(np.float32)
    return values


def e2m1_codes(x: F32) -> NDArray[np.uint8]:
    """Saturate and round to E2M1; what was below zero keeps its sign, zeros are positive."""
    return nearest(E2M1, x) | np.where(x < 0, 8, 0).astype(np.uint8)


def e2m1_values(codes: NDArray[np.uint8]) -> F32:
    """The values of E2M1 codes."""
    values: F32 = (E2M1[codes & 7] * np.where(codes & 8, -1, 1)).astype(np.float32)
    return values


def pack_words(codes: NDArray[np.integer[Any]], bits: int) -> NDArray[np.int32]:
    """Each row's codes as one little-endian number, element i times 2**(i * bits), in words."""
    words = -(-codes.shape[1] * bits // 32)
    numbers = [sum(int(code) << (i * bits) for i, code in enumerate(row)) for row in codes]
    data = b"".join(number.to_bytes(4 * words, "little") for number in numbers)
    return np.frombuffer(data, "<i4").reshape(len(codes), words)


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two codes to a byte, the even column in the low half."""
    return codes[:, 0::2] | np.left_shift(codes[:, 1::2], 4, dtype=np.uint8)


def quantize(
    weight: F32,
    dtype: str,
    how: Arguments,
    gmax: float | None = None,
    shrink: ArrayLike = 1.0,
) -> Quantized:
    """What is stored for a weight.

    Args:
        weight: [rows, columns], finite values of D.
        dtype: D.
        how: what to do.
        gmax: largest magnitude of the fused set, for NVFP4.
        shrink: what part of each tile's range is covered, one number or [tiles down, across].
    """
    part = np.asarray(shrink, np.float32)
    with np.errstate(all="ignore"):  # infinities and NaN are dealt with where they can arise
        if how.kind == "nvfp4":
            assert gmax is not None
            return _nvfp4(weight, dtype, how, gmax, part)
        family = {"int": _integers, "fp8": _float8, "mx": _mx}[how.kind]
        return family(weight, dtype, how, part)


def _integers(weight: F32, dtype: str, how: Arguments, shrink: F32) -> Quantized:
    tiles = Tiles(weight.shape, how.tile)
    steps, lowest = np.float32(2**how.bits - 1), np.float32(-(2 ** (how.bits - 1)))
    if how.signed:
        low, high = tiles.bounds(weight)
        largest = np.where(-low >= high, low, high)
        scale = rounded(-largest / np.float32(2 ** (how.bits - 1)), dtype)
        zero = np.zeros_like(scale)
    elif how.symmetric:
        scale = rounded(tiles.amax(weight) * shrink / (steps / 2), dtype)
        zero = np.zeros_like(scale)
    else:
        low, high = (bound * shrink for bound in tiles.bounds(weight))
        scale = rounded(rounded(high - low, dtype) / steps, dtype)
        zero = rounded(lowest - rounded(low / scale, dtype), dtype)
        zero = np.rint(np.clip(zero, lowest, lowest + steps))
        zero = np.where(np.isnan(zero), np.float32(0), zero)  # 0 / 0, as x86 converts it
    scale = np.where(scale == 0, np.float32(EPSILON[dtype]), scale)
    quotient = _quotient(weight / tiles.spread(scale), dtype, how)
    if not how.symmetric:
        quotient = _quotient(quotient + tiles.spread(zero), dtype, how)
    codes = np.rint(np.clip(quotient, lowest, lowest + steps))
    outputs = {"weight_scale": _scale(scale, dtype, how)}
    if how.packed:
        outputs["weight_packed"] = Stored("I32", pack_words((codes - lowest).astype(int), how.bits))
        outputs["weight_shape"] = Stored("I64", np.array(weight.shape, np.int64))
    else:
        outputs["weight"] = Stored("I8", codes.astype(np.int8))
    if not how.symmetric:
        if how.packed and how.strategy in ("channel", "group"):
            words = pack_words((zero - lowest).astype(int).T, how.bits).T
            outputs["weight_zero_point"] = Stored("I32", words)
        else:
            points = zero.astype(np.int8)
            flat = points.reshape(1) if how.strategy == "tensor" else points
            outputs["weight_zero_point"] = Stored("I8", flat)
    return Quantized(outputs, (codes - tiles.spread(zero)) * tiles.spread(scale))


def _float8(weight: F32, dtype: str, how: Arguments, shrink: F32) -> Quantized:
    tiles = Tiles(weight.shape, how.tile)
    scale = rounded(tiles.amax(weight) * shrink / np.float32(448), dtype)
    scale = np.where(scale == 0, np.float32(EPSILON[dtype]), scale)
    codes = e4m3_codes(_quotient(weight / tiles.spread(scale), dtype, how))
    outputs = {"weight": Stored("F8_E4M3", codes), "weight_scale": _scale(scale, dtype, how)}
    return Quantized(outputs, e4m3_values(codes) * tiles.spread(scale))


def _nvfp4(weight: F32, dtype: str, how: Arguments, gmax: float, shrink: F32) -> Quantized:
    tiles = Tiles(weight.shape, how.tile)
    largest = np.array([max(gmax, SMALLEST_NORMAL[dtype])], np.float32)
    total = rounded(rounded(1 / largest, dtype) * np.float32(2688), dtype)
    total = np.where(np.isfinite(total), total, np.float32(1))
    local = e4m3_codes(total * rounded(tiles.amax(weight) * shrink / np.float32(6), dtype))
    local = np.where(local == 0, np.uint8(0x20), local)
    effective = tiles.spread(e4m3_values(local) / total)
    codes = e2m1_codes(weight / effective)
    outputs = {
        "weight_packed": Stored("U8", pack_nibbles(codes)),
        "weight_scale": Stored("F8_E4M3", local),
        "weight_global_scale": Stored("F32", total),
    }
    return Quantized(outputs, e2m1_values(codes) * effective)


def _mx(weight: F32, dtype: str, how: Arguments, shrink: F32) -> Quantized:
    tiles = Tiles(weight.shape, how.tile)
    bits = to_bits(tiles.amax(weight) * shrink, dtype).astype(np.int64)
    below = {4: 2, 6: 4, 8: 2}[how.bits]  # a significand of 1.75, or 1.9375, rounds up
    power = (bits + (1 << (MANTISSA[dtype] - below))) >> MANTISSA[dtype]
    largest = {4: 2, 6: 2, 8: 8}[how.bits]  # exponents of 6, 7.5 and 448
    byte = np.where(power == 0, 0, np.clip(power - BIAS[dtype] + 127 - largest, 0, 255))
    scale = tiles.spread(np.ldexp(np.float32(1), byte - 127))
    quotient = _quotient(weight / scale, dtype, how)
    stored = Stored("U8", byte.astype(np.uint8))
    if how.bits == 8:
        codes = e4m3_codes(quotient)
        outputs = {"weight": Stored("F8_E4M3", codes), "weight_scale": stored}
        return Quantized(outputs, e4m3_values(codes) * scale)
    if how.bits == 6:
        codes = e2m3_codes(quotient)
        outputs = {"weight_packed": Stored("U8", pack_fours(codes)), "weight_scale": stored}
        signs = np.where(codes & 32, np.float32(-1), np.float32(1))
        return Quantized(outputs, signs * E2M3[codes & 31] * scale)
    codes = e2m1_codes(quotient)
    outputs = {"weight_packed": Stored("U8", pack_nibbles(codes)), "weight_scale": stored}
    return Quantized(outputs, e2m1_values(codes) * scale)


def e2m3_codes(x: F32) -> NDArray[np.uint8]:
    """Nearest, ties to even codes, saturating; all keep their sign."""
    magnitude, middles = np.abs(x), (E2M3[1:] + E2M3[:-1]) / 2
    below = np.searchsorted(middles, magnitude)  # a tie goes down
    is_tie = middles[np.minimum(below, 30)] == magnitude
    code = np.where(np.isnan(magnitude), 31, below + (is_tie & (below % 2 == 1)))
    found: NDArray[np.uint8] = (code + 32 * np.signbit(x)).astype(np.uint8)
    return found


def pack_fours(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Four codes of six bits in three bytes, the first in the lowest bits."""
    fours = codes.reshape(len(codes), -1, 4).astype(np.uint32)
    word = (fours << np.array([0, 6, 12, 18], np.uint32)).sum(-1, dtype=np.uint32)
    found: NDArray[np.uint8] = np.stack([word, word >> 8, word >> 16], -1).astype(np.uint8)
    return found.reshape(len(codes), -1)


def _quotient(x: F32, dtype: str, how: Arguments) -> F32:
    return rounded(x, dtype) if how.compute == "weight" else x


def _scale(scale: F32, dtype: str, how: Arguments) -> Stored:
    bits = to_bits(scale, dtype)
    return Stored(dtype, bits.reshape(1) if how.strategy == "tensor" else bits)
