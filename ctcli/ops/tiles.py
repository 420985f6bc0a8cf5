"""Tiles, which are the elements that share a scale, and their ranges.

An area is tiles side by side: as many as a piece has room for, or one that is wider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, int16, uint16, uint32, uint64

from ctcli.ops.elements import BF16, F16, bits_of, float_of, from_bf16, from_f16
from ctcli.ops.jit import inlined
from ctcli.ops.pieces import PIECE, PieceBuffers, PieceInput, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_ZERO = float32(0)
_MAGNITUDE, _MAGNITUDE_16 = uint32(0x7FFFFFFF), uint16(0x7FFF)


class KernelSettings(NamedTuple):
    """How kernels quantize: what differs between the schemes of a format.

    Attributes:
        rows: of the block.
        columns: of the block.
        height: rows of a tile.
        width: columns of a tile.
        step: columns of an area.
        kind: of D (see `elements.KINDS`), to which scales are rounded.
        quotient: kind to which weight / scale is rounded.
        bits: of an element.
        packed: bits that an element takes up in a row of codes.
        offset: what is added to integers to make codes of them.
        symmetric: there are no zero points.
        signed: scales take their sign from the element of largest magnitude.
        fourth: searches add up fourth powers of errors, not squares.
        total: the global scale of NVFP4.
    """

    rows: int
    columns: int
    height: int
    width: int
    step: int
    kind: int
    quotient: int
    bits: int
    packed: int
    offset: int
    symmetric: bool
    signed: bool
    fourth: bool
    total: float32


class Tiles(NamedTuple):
    """What is found for each tile, float32 [row tiles, column tiles].

    Attributes:
        lows: smallest value, zero included.
        highs: largest value.
        scales: scale.
        marks: zero point, or what a format has in its place.
    """

    lows: Array
    highs: Array
    scales: Array
    marks: Array


@inlined
def _widen_one(tile: uint64, low: float32, high: float32, lows: Array, highs: Array) -> None:
    """Widen the range of a tile; NaN stays."""
    if low < lows[tile] or low != low:  # noqa: PLR0124 (NaN)
        lows[tile] = low
    if high > highs[tile] or high != high:  # noqa: PLR0124
        highs[tile] = high


def _widener(width: int) -> Callable[..., None]:
    @inlined
    def widen(row: Array, kind: int, lows: Array, highs: Array) -> None:
        """As `_widen_by_halves`, for whole tiles of this width: all of one is one instruction."""
        step, tile = uint64(width), uint64(0)
        for start in range(uint64(0), uint64(row.size), step):
            largest = uint16(0)
            for i in range(step):
                magnitude = uint16(row[start + i] & _MAGNITUDE_16)
                largest = magnitude if magnitude > largest else largest  # noqa: FURB136 (64 bits)
            high = from_bf16(largest) if kind == BF16 else from_f16(largest)
            _widen_one(tile, float32(-high), high, lows, highs)
            tile += uint64(1)

    return widen


_widen_16, _widen_32 = _widener(16), _widener(32)


@inlined
def find_ranges(
    source: PieceInput, settings: KernelSettings, tiles: Tiles, top: int, left: int
) -> None:
    """The range of each tile of an area: where signs do not matter the largest magnitude, +-."""
    symmetric = settings.symmetric and not settings.signed
    right = min(left + settings.step, settings.columns)
    down, across = top // settings.height, left // settings.width
    stop = (right + settings.width - 1) // settings.width
    lows, highs = tiles.lows[down, across:stop], tiles.highs[down, across:stop]
    lows[:] = _ZERO
    highs[:] = _ZERO
    for row in range(top, min(top + settings.height, settings.rows)):
        if source.kind in (BF16, F16):
            some, kind, width = source.halves[row, left:right], source.kind, settings.width
            if symmetric and width == 16 and some.size % 16 == 0:
                _widen_16(some, kind, lows, highs)
            elif symmetric and width == 32 and some.size % 32 == 0:
                _widen_32(some, kind, lows, highs)
            else:
                _widen_by_halves(some, kind, width, symmetric, lows, highs)
        else:
            _widen(source.floats[row, left:right], settings.width, symmetric, lows, highs)


@inlined
def _widen_by_halves(
    row: Array, kind: int, width: int, symmetric: bool, lows: Array, highs: Array
) -> None:
    """Widen ranges of tiles to some of a row, as bits: magnitudes are ordered as these, NaN last.

    So are numbers with a sign, once the bits of negative magnitudes are flipped.
    """
    stop, step, tile = uint64(row.size), uint64(width), uint64(0)
    for start in range(uint64(0), stop, step):
        last = min(uint64(start + step), stop)
        largest = uint16(0)
        for i in range(start, last):
            magnitude = uint16(row[i] & _MAGNITUDE_16)
            largest = magnitude if magnitude > largest else largest  # noqa: FURB136 (64 bits)
        high = from_bf16(largest) if kind == BF16 else from_f16(largest)
        low = float32(-high)
        if not symmetric and high == high:  # noqa: PLR0124 (NaN)
            least, most = int16(0), int16(0)
            for i in range(start, last):
                ordered = _ordered(int16(row[i]))
                least = ordered if ordered < least else least  # noqa: FURB136
                most = ordered if ordered > most else most  # noqa: FURB136
            lowest, highest = uint16(_ordered(least)), uint16(most)
            low = from_bf16(lowest) if kind == BF16 else from_f16(lowest)
            high = from_bf16(highest) if kind == BF16 else from_f16(highest)
        _widen_one(tile, low, high, lows, highs)
        tile += uint64(1)


@inlined
def _ordered(bits: int16) -> int16:
    """Bits of a float with those of a negative magnitude flipped, or back."""
    return int16(bits ^ int16(int16(bits >> int16(15)) & int16(0x7FFF)))


@inlined
def _widen(row: Array, width: int, symmetric: bool, lows: Array, highs: Array) -> None:
    """Widen ranges of tiles to some of a row of float32."""
    stop, step, tile = uint64(row.size), uint64(width), uint64(0)
    for start in range(uint64(0), stop, step):
        last = min(uint64(start + step), stop)
        largest = uint32(0)
        for i in range(start, last):
            magnitude = uint32(bits_of(row[i]) & _MAGNITUDE)
            largest = magnitude if magnitude > largest else largest  # noqa: FURB136 (64 bits)
        high = float_of(largest)
        low = float32(-high)
        if not symmetric and high == high:  # noqa: PLR0124 (NaN)
            low, high = _ZERO, _ZERO
            for i in range(start, last):
                value = row[i]
                low = value if value < low else low  # noqa: FURB136
                high = value if value > high else high  # noqa: FURB136
        _widen_one(tile, low, high, lows, highs)
        tile += uint64(1)


@inlined
def find_all_ranges(source: PieceInput, settings: KernelSettings, tiles: Tiles) -> None:
    """The range of each tile of a block."""
    for top in range(0, settings.rows, settings.height):
        for left in range(0, settings.columns, settings.step):
            find_ranges(source, settings, tiles, top, left)


@inlined
def spread_all(
    settings: KernelSettings, work: PieceBuffers, tiles: Tiles, top: int, left: int
) -> None:
    """Every element's scale and zero point, for the first piece of an area."""
    down, across = top // settings.height, left // settings.width
    count = min(PIECE, settings.step, settings.columns - left)
    spread(tiles.scales[down, across:], settings.width, count, work.scales)
    if not settings.symmetric:
        spread(tiles.marks[down, across:], settings.width, count, work.zeros)
