"""Tiles, which are the elements that share a scale, and their ranges.

An area is tiles side by side: as many as a piece has room for, or one that is wider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32

from ctcli.ops.jit import merged
from ctcli.ops.pieces import PIECE, Source, Work, ends_of, load, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_ZERO = float32(0)


class Settings(NamedTuple):
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


@merged
def find_ranges(
    source: Source, settings: Settings, work: Work, tiles: Tiles, top: int, left: int
) -> None:
    """The range of each tile of an area."""
    right = min(left + settings.step, settings.columns)
    down, across = top // settings.height, left // settings.width
    for tile in range(across, (right + settings.width - 1) // settings.width):
        tiles.lows[down, tile] = _ZERO
        tiles.highs[down, tile] = _ZERO
    for row in range(top, min(top + settings.height, settings.rows)):
        for start in range(left, right, PIECE):
            count = min(PIECE, right - start)
            load(source, row, start, count, work.weights)
            width = min(settings.width, PIECE)
            for tile in range((count + width - 1) // width):
                last = min((tile + 1) * width, count)
                low, high = ends_of(work.weights, tile * width, last, settings.symmetric)
                if low < tiles.lows[down, across + tile] or low != low:  # noqa: PLR0124 (NaN)
                    tiles.lows[down, across + tile] = low
                if high > tiles.highs[down, across + tile] or high != high:  # noqa: PLR0124
                    tiles.highs[down, across + tile] = high


@merged
def spread_all(settings: Settings, work: Work, tiles: Tiles, top: int, left: int) -> None:
    """Every element's scale and zero point, for the first piece of an area."""
    down, across = top // settings.height, left // settings.width
    count = min(PIECE, settings.step, settings.columns - left)
    spread(tiles.scales[down, across:], settings.width, count, work.scales)
    if not settings.symmetric:
        spread(tiles.marks[down, across:], settings.width, count, work.zeros)
