"""Searching for the part of its range that a tile is to cover: the error of each part tried.

Where the range is the tile's own, an error is found only if it may be the least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, float64, uint32

from ctcli.ops.elements import BF16, F16, F32, bits_of, float_of, round_to, squared
from ctcli.ops.jit import CompiledKernel, inlined, merged
from ctcli.ops.pieces import PIECE, PieceInput, load, total
from ctcli.ops.tiles import KernelSettings, Tiles, find_all_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_ADDED = 64
"""Pieces whose squares are added up in float32, before the sums go to float64."""
_LANES = 8
"""So many of the large, and of the small, elements of a tile show that a part is too small."""
_ZERO, _ONE = float32(0), float32(1)
_LEAST, _MOST = float32(2.0**-100), float32(2.0**100)
_WIDER, _SURELY = float32(1 + 2.0**-20), float32(1 - 2.0**-10)
_HALF_BF16, _BF16 = uint32(0x8000), uint32(0xFFFF0000)


class SearchBuffers(NamedTuple):
    """Scratch, float32 [PIECE] each.

    Attributes:
        weights: of a piece.
        errors: squares of the errors of its values.
        sums: of those of several pieces; zeros at first.
        scales: of a tile, for each part of its range.
        marks: zero points, or what a format has in their place.
        lowest: the lowest value of a code, if not what is lower.
        highest: the highest one, or what is higher.
        floors: what errors cannot be less than.
        tops: large elements.
        bottoms: small elements.
    """

    weights: Array
    errors: Array
    sums: Array
    scales: Array
    marks: Array
    lowest: Array
    highest: Array
    floors: Array
    tops: Array
    bottoms: Array


class Tile(NamedTuple):
    """Where a tile lies in a block.

    Attributes:
        top: its first row.
        left: its first column.
        height: rows.
        width: columns.
        is_piece: whether a piece has room for all of it.
    """

    top: int
    left: int
    height: int
    width: int
    is_piece: bool


@merged
def _tile_at(settings: KernelSettings, down: int, across: int) -> Tile:
    top, left = down * settings.height, across * settings.width
    height = min(settings.height, settings.rows - top)
    width = min(settings.width, settings.columns - left)
    return Tile(top, left, height, width, height == 1 and width <= PIECE)


def searcher(
    name: str,
    scale_of: Callable[..., Any],
    ends_of: Callable[..., Any],
    find_errors: Callable[..., None],
) -> Callable[..., None]:
    """A format's kernel that searches.

    Args:
        name: the format's.
        scale_of: as `loops.kernels` takes it.
        ends_of: scale, zero point and settings -> the lowest and the highest value of a code, with
            zero between them.
        find_errors: of `error_finder`.
    """
    scale_all, search_tile = _scaler(scale_of, ends_of), _tile_searcher(find_errors)

    def search_tiles(
        source: PieceInput,
        settings: KernelSettings,
        work: SearchBuffers,
        tiles: Tiles,
        has_ranges: bool,
        shrinks: Array,
        errors: Array,
    ) -> None:
        """Find the error of each tile for parts of its range; of which power, settings say.

        Args:
            source: the block.
            settings: how to quantize it.
            work: scratch.
            tiles: ranges are written, or read as far as `has_ranges` says. Its own ranges are
                shrunk to where the error is least, of equals (and of NaN) to the first.
            has_ranges: whether the ranges of tiles are known.
            shrinks: the parts, float32 [n], n at most `PIECE`.
            errors: float64 [n, row tiles, column tiles], written if ranges are known.
        """
        if not has_ranges:
            find_all_ranges(source, settings, tiles)
        for down in range(tiles.lows.shape[0]):
            for across in range(tiles.lows.shape[1]):
                scale_all(settings, work, tiles, down, across, shrinks)
                best = search_tile(
                    source, settings, work, tiles, down, across, shrinks.size, has_ranges, errors
                )
                if not has_ranges:
                    tiles.lows[down, across] *= shrinks[best]
                    tiles.highs[down, across] *= shrinks[best]

    return CompiledKernel(search_tiles, f"{name}.search")


def _scaler(scale_of: Callable[..., Any], ends_of: Callable[..., Any]) -> Callable[..., Any]:
    @merged
    def scale_all(
        settings: KernelSettings,
        work: SearchBuffers,
        tiles: Tiles,
        down: int,
        across: int,
        shrinks: Array,
    ) -> None:
        """Scales and marks of a tile for each part of its range, and the ends of its values."""
        low, high = tiles.lows[down, across], tiles.highs[down, across]
        scales, marks, lowest, highest = work.scales, work.marks, work.lowest, work.highest
        for k in range(shrinks.size):
            part = shrinks[k]
            scale, mark = scale_of(float32(low * part), float32(high * part), settings)
            least, most = ends_of(scale, mark, settings)
            scales[k], marks[k] = scale, mark
            lowest[k], highest[k] = float32(least * _WIDER), float32(most * _WIDER)

    return scale_all


def _tile_searcher(find_errors: Callable[..., None]) -> Callable[..., Any]:
    error_of = _error_of(find_errors)

    @merged
    def search_tile(
        source: PieceInput,
        settings: KernelSettings,
        work: SearchBuffers,
        tiles: Tiles,
        down: int,
        across: int,
        parts: int,
        has_ranges: bool,
        errors: Array,
    ) -> int:
        """Which part of its range gives a tile the least error; with known ranges, find them all.

        The weights of a tile that is one piece are loaded once.
        """
        tile = _tile_at(settings, down, across)
        is_pruned = not (has_ranges or settings.fourth)
        if tile.is_piece:
            load(source, tile.top, tile.left, tile.width, work.weights)
        if is_pruned and tile.is_piece:
            _find_floors(work, parts, tile.width)
        elif is_pruned:
            _find_floors_of_range(work, parts, tiles.lows[down, across], tiles.highs[down, across])
        error, least, best = float64(0), float64(0), 0
        for k in range(parts):
            scale, mark = work.scales[k], work.marks[k]
            # With the same scale, the error is the same.
            if k == 0 or scale != work.scales[k - 1] or mark != work.marks[k - 1]:
                if is_pruned and k and work.floors[k] >= least:
                    continue
                error = error_of(source, settings, work, tile, k, tiles.highs[down, across])
            if has_ranges:
                errors[k, down, across] = error
            if k == 0 or error < least:
                least, best = error, k
        return best

    return search_tile


@inlined
def _find_floors_of_range(work: SearchBuffers, parts: int, low: float32, high: float32) -> None:
    """Floors below the errors of a tile for each part of its range: what its ends alone add.

    They are wrong by as much as they lie outside of all values. Either may stand for the other.
    """
    floors, lowest, highest = work.floors, work.lowest, work.highest
    for k in range(parts):
        reach = highest[k] if highest[k] > -lowest[k] else float32(-lowest[k])
        over, under = float32(high - reach), float32(-low - reach)
        over = over if over > under else under  # noqa: FURB136
        floors[k] = float32(squared(over) * _SURELY) if over > _ZERO else _ZERO


@inlined
def _find_floors(work: SearchBuffers, parts: int, count: int) -> None:
    """The same for a tile that is one piece, from several of its elements."""
    weights, tops, bottoms, left = work.weights, work.tops, work.bottoms, count
    for i in range(count):
        tops[i], bottoms[i] = weights[i], weights[i]
    while left > _LANES:  # a half onto the other
        half = left // 2
        above, below = tops[left - half :], bottoms[left - half :]
        for i in range(half):
            tops[i] = above[i] if above[i] > tops[i] else tops[i]  # noqa: FURB136
            bottoms[i] = below[i] if below[i] < bottoms[i] else bottoms[i]  # noqa: FURB136
        left -= half
    floors, lowest, highest = work.floors, work.lowest, work.highest
    for k in range(parts):
        floors[k] = _ZERO
    for lane in range(left):
        top, bottom = tops[lane], bottoms[lane]
        for k in range(parts):
            over, under = float32(top - highest[k]), float32(lowest[k] - bottom)
            over = over if over > _ZERO else _ZERO  # noqa: FURB136
            under = under if under > _ZERO else _ZERO  # noqa: FURB136
            floors[k] += float32((squared(over) + squared(under)) * _SURELY)


def _error_of(find_errors: Callable[..., None]) -> Callable[..., Any]:
    @merged
    def error_of(
        source: PieceInput,
        settings: KernelSettings,
        work: SearchBuffers,
        tile: Tile,
        k: int,
        high: float32,
    ) -> float64:
        """The error of a tile with the k-th of its scales; the weights of a piece are loaded."""
        scale, mark, sums, errors = work.scales[k], work.marks[k], work.sums, work.errors
        if tile.is_piece:
            find_errors(work, tile.width, scale, mark, settings, source.kind)
            if settings.fourth:
                _square_errors(errors, tile.width, high)
            return total(errors, 0, tile.width)
        size, right = min(tile.width, PIECE), tile.left + tile.width
        error, added = float64(0), 0
        for row in range(tile.top, tile.top + tile.height):
            for start in range(tile.left, right, PIECE):
                count = min(PIECE, right - start)
                load(source, row, start, count, work.weights)
                find_errors(work, count, scale, mark, settings, source.kind)
                if settings.fourth:
                    _square_errors(errors, count, high)
                for i in range(count):
                    sums[i] += errors[i]
                added += 1
                if settings.fourth or added == _ADDED:
                    error += _take(sums, size)
                    added = 0
        return error + _take(sums, size)

    return error_of


@merged
def _square_errors(errors: Array, size: int, end: float32) -> None:
    """Squares of errors to fourth powers, over that of the end of the tile's range."""
    high = float64(end)
    factor = float32(1 / (high * high)) if high > 0 else _ZERO
    for i in range(size):
        ratio = float32(errors[i] * factor)
        errors[i] = ratio * ratio


@inlined
def _take(sums: Array, size: int) -> float64:
    """The sum of errors, which begin anew."""
    found = total(sums, 0, size)
    for i in range(size):
        sums[i] = _ZERO
    return found


def error_finder(value_of: Callable[..., Any], rounds: bool = True) -> Callable[..., None]:
    """What finds the squares of the errors of a piece.

    Args:
        value_of: weight, quotient, scale, mark, settings and the kind to which sums with the
            quotient are rounded -> what a reader computes.
        rounds: whether quotients may be rounded.
    """
    plain = _finder(value_of, F32)
    if not rounds:

        @merged
        def find_plain(
            work: SearchBuffers,
            count: int,
            scale: float32,
            mark: float32,
            settings: KernelSettings,
            kind: int,  # noqa: ARG001
        ) -> None:
            plain(work, count, scale, mark, settings)

        return find_plain
    f16, bf16, by_inverse = _finder(value_of, F16), _finder(value_of, BF16), _by_inverse(value_of)

    @merged
    def find_errors(
        work: SearchBuffers,
        count: int,
        scale: float32,
        mark: float32,
        settings: KernelSettings,
        kind: int,
    ) -> None:
        if settings.quotient == F32:
            plain(work, count, scale, mark, settings)
        elif settings.quotient == F16:
            f16(work, count, scale, mark, settings)
        elif kind == BF16 and abs(scale) > _LEAST and abs(scale) < _MOST:
            by_inverse(work, count, scale, mark, settings)
        else:
            bf16(work, count, scale, mark, settings)

    return find_errors


def _finder(value_of: Callable[..., Any], kind: int) -> Callable[..., None]:
    @merged
    def find(
        work: SearchBuffers, count: int, scale: float32, mark: float32, settings: KernelSettings
    ) -> None:
        """For quotients that are rounded to a dtype."""
        weights, errors = work.weights, work.errors
        for i in range(count):
            weight = weights[i]
            quotient = round_to(float32(weight / scale), kind)
            value = value_of(weight, quotient, scale, mark, settings, kind)
            errors[i] = squared(float32(value - weight))

    return find


def _by_inverse(value_of: Callable[..., Any]) -> Callable[..., None]:
    @merged
    def find(
        work: SearchBuffers, count: int, scale: float32, mark: float32, settings: KernelSettings
    ) -> None:
        """For weights and scales of BF16, whose quotients are rounded to it, without dividing.

        Their quotient is 2**-17 of itself away from every number in the middle between two of
        BF16, so that neither the product's error, below 2**-22, nor ties can change what it is
        rounded to.
        """
        weights, errors, inverse = work.weights, work.errors, float32(_ONE / scale)
        for i in range(count):
            weight = weights[i]
            bits = bits_of(float32(weight * inverse))
            quotient = float_of(uint32(bits + _HALF_BF16) & _BF16)
            value = value_of(weight, quotient, scale, mark, settings, BF16)
            errors[i] = squared(float32(value - weight))

    return find
