"""Pieces of a row, short enough for the innermost cache, and what the kernels of formats do there.

Functions take how many elements a piece has beside arrays that may be longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, float64, uint8, uint32, uint64

from ctcli.ops.elements import BF16, F16, bits_of, float_of, from_bf16, from_f16, round_to
from ctcli.ops.jit import inlined, merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

PIECE = 1024  # elements
_ZERO = float32(0)
_MAGNITUDE = uint32(0x7FFFFFFF)
_WIDE = 64
"""Of a tile, whose halves are vectors."""


class PieceInput(NamedTuple):
    """A block of a weight, [rows, columns].

    Attributes:
        halves: the bits of BF16 or F16, uint16; else empty.
        floats: all others, float32; else empty.
        kind: which (see `elements.KINDS`).
    """

    halves: Array
    floats: Array
    kind: int


class PieceBuffers(NamedTuple):
    """A piece: float32, but for codes.

    Attributes:
        weights: as they are.
        scales: of each element.
        zeros: their zero points, likewise.
        values: what a reader computes from the codes.
        squares: scratch.
        errors: squares of the errors of the values, to which those of each further piece are added.
        energies: likewise, of the weights.
        codes: uint8; a few more than a piece has.
    """

    weights: Array
    scales: Array
    zeros: Array
    values: Array
    squares: Array
    errors: Array
    energies: Array
    codes: Array


@inlined
def load(source: PieceInput, row: int, start: int, count: int, into: Array) -> None:
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
def spread(of_tiles: Array, width: int, count: int, into: Array) -> None:
    """Every element's tile's value, for tiles of so many columns."""
    stop, step, tile = uint64(count), uint64(width), uint64(0)
    for start in range(uint64(0), stop, step):
        value = of_tiles[tile]
        tile += uint64(1)
        for i in range(start, min(uint64(start + step), stop)):
            into[i] = value


@inlined
def divide(work: PieceBuffers, count: int, kind: int) -> None:
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


@merged
def total(x: Array, start: int, stop: int) -> float64:
    """The sum of float32 values, which are overwritten; in one order on all processors."""
    some = x[start:stop]
    count = some.size
    while count >= 128 and count % 4 == 0:  # twice a half onto the other
        half = count // 4
        b, c, d = some[half:], some[2 * half :], some[3 * half :]
        for i in range(half):
            some[i] = float32(some[i] + c[i]) + float32(b[i] + d[i])
        count = half
    while count > 32:  # a half onto the other
        half = count // 2
        upper = some[count - half :]
        for i in range(half):
            some[i] += upper[i]
        count -= half
    first, second, third, fourth = _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(count // 4):
        four = some[4 * i :]
        first += four[0]
        second += four[1]
        third += four[2]
        fourth += four[3]
    for i in range(count - count % 4, count):
        first += some[i]
    return float64((first + third) + (second + fourth))


@inlined
def take_squares(work: PieceBuffers) -> tuple[float64, float64]:
    """Sums of the squares of the errors, and of the weights, which begin anew."""
    errors, energies = work.errors, work.energies
    error, energy = total(errors, 0, PIECE), total(energies, 0, PIECE)
    for i in range(PIECE):
        errors[i] = _ZERO
        energies[i] = _ZERO
    return error, energy


@inlined
def exact_squares(work: PieceBuffers, start: int, stop: int) -> tuple[float64, float64]:
    """Sums of the squares of the errors of the values, and of the weights, in float64."""
    error, energy = float64(0), float64(0)
    for i in range(start, stop):
        weight = float64(work.weights[i])
        difference = float64(work.values[i]) - weight
        error += difference * difference
        energy += weight * weight
    return error, energy


@inlined
def compare_piece(work: PieceBuffers, count: int) -> tuple[float64, float32]:
    """Scale the values, and square their errors; the weights' squares, and the largest error."""
    weights, scales, values, errors = work.weights, work.scales, work.values, work.errors
    energies, largest = work.energies, uint32(0)
    for i in range(count):
        values[i] *= scales[i]
    for i in range(count):
        errors[i] = values[i] - weights[i]
    for i in range(count):
        magnitude = uint32(bits_of(errors[i]) & _MAGNITUDE)
        largest = magnitude if magnitude > largest else largest  # noqa: FURB136 (vectors)
    for i in range(count):
        errors[i] *= errors[i]
    for i in range(count):
        energies[i] = weights[i] * weights[i]
    return total(energies, 0, count), float_of(largest)


@inlined
def add_to_tiles(
    work: PieceBuffers,
    count: int,
    width: int,
    alike: float32,
    is_exact: bool,
    squares: Array,
    bounds: Array,
) -> None:
    """Add a piece's squares to the sums of its tiles.

    Args:
        work: with the squares of errors, and of half the steps.
        count: elements of the piece.
        width: columns of a tile.
        alike: the square of half a step, where all are alike; else zero.
        is_exact: take the errors of values anew, in float64.
        squares: float64 [tiles], of errors.
        bounds: likewise, of half the steps.
    """
    width = min(width, PIECE)
    if is_exact:
        for tile in range((count + width - 1) // width):
            start, stop = tile * width, min((tile + 1) * width, count)
            squares[tile] += exact_squares(work, start, stop)[0]
    else:
        _add_sums(work.errors, work.values, count, width, squares)
    if alike:
        for tile in range((count + width - 1) // width):
            bounds[tile] += float64(alike) * min(width, count - tile * width)
    else:
        _add_sums(work.squares, work.values, count, width, bounds)


@inlined
def _add_sums(x: Array, other: Array, count: int, width: int, sums: Array) -> None:
    """Add the sum of each tile; both arrays are overwritten."""
    if width >= _WIDE:
        for tile in range((count + width - 1) // width):
            sums[tile] += total(x, tile * width, min((tile + 1) * width, count))
    else:
        _fold(x, other, count, width)
        for tile in range((count + width - 1) // width):
            sums[tile] += x[tile]


@inlined
def _fold(x: Array, other: Array, count: int, width: int) -> None:
    """The sums of so many neighbours each, in front; the last ones are made up with zeros."""
    stop = (count + width - 1) // width * width
    for i in range(count, stop):
        x[i] = _ZERO
    while width % 4 == 0:
        stop, width = stop // 4, width // 4
        for i in range(stop):
            other[i] = float32(x[4 * i] + x[4 * i + 1]) + float32(x[4 * i + 2] + x[4 * i + 3])
        for i in range(stop):
            x[i] = other[i]
    for i in range(stop // width):
        found = x[i * width]
        for j in range(1, width):
            found += x[i * width + j]
        x[i] = found


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
