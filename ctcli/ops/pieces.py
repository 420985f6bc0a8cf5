"""Pieces of a row, short enough for the innermost cache, and what the kernels of formats do there.

Functions take how many elements a piece has beside arrays that may be longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, float64, isfinite, uint8, uint32, uint64

from ctcli.ops.elements import BF16, F16, bits_of, float_of, from_bf16, from_f16, round_to
from ctcli.ops.jit import inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

PIECE = 1024  # elements
_MAGNITUDE = uint32(0x7FFFFFFF)
_ZERO = float32(0)


class Source(NamedTuple):
    """A block of a weight, [rows, columns].

    Attributes:
        halves: the bits of BF16 or F16, uint16; else empty.
        floats: all others, float32; else empty.
        kind: which (see `elements.KINDS`).
    """

    halves: Array
    floats: Array
    kind: int


class Work(NamedTuple):
    """A piece: float32, but for codes.

    Attributes:
        weights: as they are.
        scales: of each element.
        zeros: their zero points, likewise.
        values: what a reader computes from the codes.
        squares: scratch.
        codes: uint8; a few more than a piece has.
    """

    weights: Array
    scales: Array
    zeros: Array
    values: Array
    squares: Array
    codes: Array


@inlined
def load(source: Source, row: int, start: int, count: int, into: Array) -> None:
    """Some of a row as float32."""
    if source.kind == BF16:
        halves = source.halves[row, start : start + count]
        for i in range(count):
            into[i] = from_bf16(halves[i])
    elif source.kind == F16:
        halves = source.halves[row, start : start + count]
        for i in range(count):
            into[i] = from_f16(halves[i])
    else:
        floats = source.floats[row, start : start + count]
        for i in range(count):
            into[i] = floats[i]


@inlined
def ends_of(weights: Array, start: int, stop: int, symmetric: bool) -> tuple[float32, float32]:
    """Smallest and largest value, zero included; of symmetric ranges the largest magnitude, +-.

    Both are NaN if a value is: magnitudes are ordered as their bits are, and NaN above all.
    """
    some, largest = weights[start:stop], uint32(0)
    if some.size == 16:  # of a loop whose length is known, all is one instruction
        for i in range(16):
            bits = uint32(bits_of(some[i]) & _MAGNITUDE)
            largest = bits if bits > largest else largest  # noqa: FURB136 (max has 64 bits)
    else:
        for i in range(some.size):
            bits = uint32(bits_of(some[i]) & _MAGNITUDE)
            largest = bits if bits > largest else largest  # noqa: FURB136
    magnitude = float_of(largest)
    if symmetric or magnitude != magnitude:  # noqa: PLR0124
        return float32(-magnitude), magnitude
    low, high = _ZERO, _ZERO
    for i in range(some.size):
        value = some[i]
        low = value if value < low else low  # noqa: FURB136
        high = value if value > high else high  # noqa: FURB136
    return low, high


@inlined
def spread(of_tiles: Array, width: int, count: int, into: Array) -> None:
    """Every element's tile's value, for tiles of so many columns."""
    for tile in range((count + width - 1) // width):
        value = of_tiles[tile]
        some = into[tile * width : min((tile + 1) * width, count)]
        for i in range(some.size):
            some[i] = value


@inlined
def divide(work: Work, count: int, kind: int) -> None:
    """Weight / scale, rounded to a dtype, as the values."""
    weights, scales, quotients = work.weights, work.scales, work.values
    for i in range(count):
        quotients[i] = float32(weights[i] / scales[i])
    round_all(quotients, count, kind)


@inlined
def round_all(x: Array, count: int, kind: int) -> None:
    """Round float32 values to a dtype."""
    if kind == BF16:
        for i in range(count):
            x[i] = round_to(x[i], BF16)
    elif kind == F16:
        for i in range(count):
            x[i] = round_to(x[i], F16)


@inlined
def total(x: Array, start: int, stop: int) -> float64:
    """The sum of float32 values, which are overwritten; in one order on all processors."""
    some = x[start:stop]
    count = some.size
    while count > 32:  # a half onto the other
        half = count // 2
        upper = some[count - half :]
        for i in range(half):
            some[i] += upper[i]
        count -= half
    a, b, c, d = _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(count // 4):
        four = some[4 * i :]
        a += four[0]
        b += four[1]
        c += four[2]
        d += four[3]
    for i in range(count - count % 4, count):
        a += some[i]
    return float64((a + c) + (b + d))


@inlined
def square_errors(work: Work, count: int) -> None:
    """The squares of the errors of the values."""
    weights, values, squares = work.weights, work.values, work.squares
    for i in range(count):
        difference = float32(values[i] - weights[i])
        squares[i] = difference * difference


@inlined
def sums_of(work: Work, count: int) -> tuple[float64, float64]:
    """Sums of the squares of the errors of the values, and of the weights.

    Only the sum of NaN and infinities is not finite.
    """
    weights, squares = work.weights, work.squares
    square_errors(work, count)
    error = total(squares, 0, count)
    for i in range(count):
        squares[i] = weights[i] * weights[i]
    energy = total(squares, 0, count)
    if isfinite(energy) and isfinite(error):
        return error, energy
    error, energy = float64(0), float64(0)  # squares are too large for float32, perhaps
    for i in range(count):
        weight = float64(weights[i])
        difference = float64(work.values[i]) - weight
        error += difference * difference
        energy += weight * weight
    return error, energy


@inlined
def store(codes: Array, count: int, bits: int, row: Array, start: int) -> None:
    """Put codes of so many bits side by side, the first in the lowest bits.

    Args:
        codes: uint8, each below 2**bits.
        count: how many; a multiple of 8 but for the last piece of a row.
        bits: 1 to 8.
        row: where they go, uint8.
        start: how many are before them in the row.
    """
    nbytes = (count * bits + 7) // 8
    some = row[start * bits // 8 : start * bits // 8 + nbytes]
    if bits == 8:
        for i in range(nbytes):
            some[i] = codes[i]
        return
    for i in range(count, count + -count % 8):
        codes[i] = 0
    if bits == 4:
        for i in range(nbytes):
            some[i] = uint8(codes[2 * i] | uint8(codes[2 * i + 1] << uint8(4)))
        return
    for i in range((count + 7) // 8):
        together = uint64(0)
        for j in range(8):
            together |= uint64(codes[8 * i + j]) << uint64(j * bits)
        for j in range(min(bits, nbytes - i * bits)):
            some[i * bits + j] = uint8((together >> uint64(8 * j)) & uint64(0xFF))


@inlined
def fetch(row: Array, start: int, count: int, bits: int, codes: Array) -> None:
    """Undo `store`."""
    nbytes = (count * bits + 7) // 8
    some = row[start * bits // 8 : start * bits // 8 + nbytes]
    if bits == 8:
        for i in range(nbytes):
            codes[i] = some[i]
        return
    if bits == 4:
        for i in range(nbytes):
            codes[2 * i] = uint8(some[i] & uint8(15))
            codes[2 * i + 1] = uint8(some[i] >> uint8(4))
        return
    mask = uint64((1 << bits) - 1)
    for i in range((count + 7) // 8):
        together = uint64(0)
        for j in range(min(bits, nbytes - i * bits)):
            together |= uint64(some[i * bits + j]) << uint64(8 * j)
        for j in range(8):
            codes[8 * i + j] = uint8((together >> uint64(j * bits)) & mask)
