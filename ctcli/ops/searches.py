"""Searching for the part of its range that a tile is to cover: the error of each part tried.

Where the range is the tile's own, errors are found only if one of them may be the least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import float32, float64, uint32

from ctcli.ops.elements import BF16, F16, F32, F64, bits_of, float_of, round_to, squared
from ctcli.ops.jit import CompiledKernel, inlined, merged
from ctcli.ops.pieces import PIECE, PieceInput, load
from ctcli.ops.tiles import KernelSettings, Tiles, find_all_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

AT_ONCE = 16
"""Parts whose errors are found together: compilers make vectors of them."""
_LANES = 8
"""So many of the large, and of the small, elements of a tile show that a part is too small."""
_ZERO, _ONE = float32(0), float32(1)
_LEAST, _MOST = float32(2.0**-100), float32(2.0**100)
_WIDER, _SURELY = float32(1 + 2.0**-20), float32(1 - 2.0**-10)
_HALF_BF16, _BF16 = uint32(0x8000), uint32(0xFFFF0000)


class SearchBuffers(NamedTuple):
    """Scratch, float32 [PIECE] each if nothing else is said.

    Attributes:
        weights: of a piece, and zeros behind them up to a multiple of four.
        numbers: of parts with different scales, int64.
        scales: of a tile, for each of these parts of its range.
        inverses: of these.
        marks: zero points, or what a format has in their place.
        tops: large elements.
        bottoms: small elements.
        sums: of a piece's errors, for each part.
        found: the errors of a tile, float64.
    """

    weights: Array
    numbers: Array
    scales: Array
    inverses: Array
    marks: Array
    tops: Array
    bottoms: Array
    sums: Array
    found: Array


def search_buffers() -> SearchBuffers:
    """Scratch for a search."""
    a, b, c, d, e, f, g = np.zeros((7, PIECE), np.float32)
    return SearchBuffers(a, np.zeros(PIECE, np.int64), b, c, d, e, f, g, np.zeros(PIECE))


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
    add_errors: Callable[..., None],
) -> Callable[..., None]:
    """A format's kernel that searches.

    Args:
        name: the format's.
        scale_of: as `loops.kernels` takes it.
        ends_of: scale, zero point and settings -> the lowest and the highest value of a code, with
            zero between them.
        add_errors: of `error_adder`.
    """
    scale_all, search_tile = _scaler(scale_of), _tile_searcher(ends_of, add_errors)

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
            shrinks: the parts, float32 [n], n a multiple of `AT_ONCE`, at most `PIECE`.
            errors: float64 [n, row tiles, column tiles], written if ranges are known.
        """
        if not has_ranges:
            find_all_ranges(source, settings, tiles)
        for down in range(tiles.lows.shape[0]):
            for across in range(tiles.lows.shape[1]):
                low, high = tiles.lows[down, across], tiles.highs[down, across]
                count = scale_all(settings, work, low, high, shrinks)
                best = search_tile(source, settings, work, tiles, down, across, count, has_ranges)
                if has_ranges:
                    _repeat(work, count, errors[:, down, across])
                else:
                    tiles.lows[down, across] *= shrinks[best]
                    tiles.highs[down, across] *= shrinks[best]

    return CompiledKernel(search_tiles, f"{name}.search")


def _scaler(scale_of: Callable[..., Any]) -> Callable[..., Any]:
    bf16, f16 = _scaler_for(scale_of, BF16), _scaler_for(scale_of, F16)
    f32, f64 = _scaler_for(scale_of, F32), _scaler_for(scale_of, F64)

    @merged
    def scale_all(
        settings: KernelSettings, work: SearchBuffers, low: float32, high: float32, parts: Array
    ) -> Any:
        if settings.kind == BF16:
            return bf16(settings, work, low, high, parts)
        if settings.kind == F16:
            return f16(settings, work, low, high, parts)
        if settings.kind == F32:
            return f32(settings, work, low, high, parts)
        return f64(settings, work, low, high, parts)

    return scale_all


def _scaler_for(scale_of: Callable[..., Any], kind: int) -> Callable[..., Any]:
    @merged
    def scale_all(
        settings: KernelSettings, work: SearchBuffers, low: float32, high: float32, parts: Array
    ) -> int:
        """Different scales and marks of a tile, for parts of its range.

        Returns:
            How many there are; the last one is there again until they fill whole vectors.
        """
        scales, marks = work.scales, work.marks
        for k in range(parts.size):
            part = parts[k]
            scale, mark = scale_of(float32(low * part), float32(high * part), settings, kind)
            scales[k], marks[k] = scale, mark
        count = _different(work, parts.size)
        for k in range(count + -count % AT_ONCE):
            work.inverses[k] = float32(_ONE / scales[k])
        return count

    return scale_all


@merged
def _different(work: SearchBuffers, parts: int) -> int:
    """Leave out parts that have the scale of the one before them, and so its error."""
    scales, marks, numbers = work.scales, work.marks, work.numbers
    scale, mark, count = scales[0], marks[0], 1
    for k in range(1, parts):
        is_new = scales[k] != scale or marks[k] != mark
        scale, mark = scales[k], marks[k]
        scales[count], marks[count], numbers[count] = scale, mark, k
        count += int(is_new)
    for k in range(count, count + -count % AT_ONCE):
        scales[k], marks[k] = scale, mark
    return count


def _tile_searcher(
    ends_of: Callable[..., Any], add_errors: Callable[..., None]
) -> Callable[..., Any]:
    find_some, widest_ends = _finder_of_some(add_errors), _widener(ends_of)

    @merged
    def search_tile(
        source: PieceInput,
        settings: KernelSettings,
        work: SearchBuffers,
        tiles: Tiles,
        down: int,
        across: int,
        count: int,
        has_ranges: bool,
    ) -> int:
        """Which part of its range gives a tile the least error; with known ranges, find them all.

        The weights of a tile that is one piece are loaded once.
        """
        tile, found = _tile_at(settings, down, across), work.found
        if tile.is_piece:
            _load(source, tile.top, tile.left, tile.width, work.weights)
        low, high = tiles.lows[down, across], tiles.highs[down, across]
        is_pruned = not (has_ranges or settings.fourth)
        least, best = float64(0), 0
        for first in range(0, count, AT_ONCE):
            if first and is_pruned:
                ends = widest_ends(settings, work, first)
                if _floor(work, tile, low, high, ends[0] * _WIDER, ends[1] * _WIDER) >= least:
                    continue
            find_some(source, settings, work, tile, high, first)
            for k in range(first, min(first + AT_ONCE, count)):
                if k == 0 or found[k] < least:
                    least, best = found[k], k
        return int(work.numbers[best])

    return search_tile


def _widener(ends_of: Callable[..., Any]) -> Callable[..., Any]:
    @merged
    def widest_ends(
        settings: KernelSettings, work: SearchBuffers, first: int
    ) -> tuple[float32, float32]:
        """The lowest and the highest value of a code with any of some scales."""
        lowest, highest = _ZERO, _ZERO
        for k in range(first, first + AT_ONCE):
            least, most = ends_of(work.scales[k], work.marks[k], settings)
            lowest, highest = min(lowest, least), max(highest, most)
        return lowest, highest

    return widest_ends


@inlined
def _repeat(work: SearchBuffers, count: int, errors: Array) -> None:
    """The errors that were found, and those of parts that are like others."""
    for i in range(count):
        stop = work.numbers[i + 1] if i + 1 < count else errors.size
        for k in range(work.numbers[i], stop):
            errors[k] = work.found[i]


@inlined
def _load(source: PieceInput, row: int, start: int, count: int, into: Array) -> None:
    """A piece, with zeros behind it, whose errors are zero."""
    load(source, row, start, count, into)
    for i in range(count, count + -count % 4):
        into[i] = _ZERO


@inlined
def _floor(
    work: SearchBuffers, tile: Tile, low: float32, high: float32, least: float32, most: float32
) -> float32:
    """What the error of a tile cannot be less than for codes that lie between some values."""
    if tile.is_piece and tile.width >= 4 * _LANES and tile.width % 4 == 0:
        return float32(_floor_of_piece(work, tile.width, least, most) * _SURELY)
    # A range's ends are wrong by as much as they lie outside; either may stand for the other.
    reach = _larger(most, -least)
    return float32(_larger(_beyond(high - reach), _beyond(-low - reach)) * _SURELY)


@inlined
def _floor_of_piece(work: SearchBuffers, count: int, least: float32, most: float32) -> float32:
    """What several of the largest, and of the smallest, elements of a piece add to the error."""
    a, tops, bottoms, left = work.weights, work.tops, work.bottoms, count // 4
    b, c, d = a[left:], a[2 * left :], a[3 * left :]
    for i in range(left):
        tops[i] = _larger(_larger(a[i], b[i]), _larger(c[i], d[i]))
    for i in range(left):
        bottoms[i] = _larger(_larger(-a[i], -b[i]), _larger(-c[i], -d[i]))
    while left > _LANES:
        half = left // 2
        above, below = tops[left - half :], bottoms[left - half :]
        for i in range(half):
            tops[i] = _larger(tops[i], above[i])
        for i in range(half):
            bottoms[i] = _larger(bottoms[i], below[i])
        left -= half
    floor = _ZERO
    for i in range(left):
        floor += _beyond(tops[i] - most) + _beyond(bottoms[i] + least)
    return floor


@merged
def _larger(x: float32, y: float32) -> float32:
    return x if x > y else y  # noqa: FURB136


@merged
def _beyond(distance: float32) -> float32:
    """The square of what is above zero."""
    return squared(_larger(distance, _ZERO))


def _finder_of_some(add_errors: Callable[..., None]) -> Callable[..., Any]:
    @merged
    def find_some(
        source: PieceInput,
        settings: KernelSettings,
        work: SearchBuffers,
        tile: Tile,
        high: float32,
        first: int,
    ) -> None:
        """The errors of a tile for some parts of its range; the weights of a piece are loaded."""
        sums, found = work.sums[first:], work.found[first:]
        factor = _over_square(high) if settings.fourth else _ZERO
        for k in range(AT_ONCE):
            sums[k], found[k] = 0, 0
        for row in range(tile.top, tile.top + tile.height):
            for start in range(tile.left, tile.left + tile.width, PIECE):
                count = min(PIECE, tile.left + tile.width - start)
                if not tile.is_piece:
                    _load(source, row, start, count, work.weights)
                add_errors(work, count, settings, source.kind, factor, first)
                for k in range(AT_ONCE):
                    found[k] += float64(sums[k])
                    sums[k] = 0

    return find_some


@merged
def _over_square(end: float32) -> float32:
    """1 over the square of the end of a tile's range."""
    high = float64(end)
    return float32(1 / (high * high)) if high > 0 else _ZERO


def error_adder(value_of: Callable[..., Any], rounds: bool = True) -> Callable[..., None]:
    """What adds the errors of a piece to sums for parts: squares, or fourth powers over a square.

    Args:
        value_of: weight, quotient, scale, mark, settings and the kind to which sums with the
            quotient are rounded -> what a reader computes.
        rounds: whether quotients may be rounded.
    """
    plain = _adder(_error_with(value_of, _quotient_of(F32), F32))
    if not rounds:

        @merged
        def add_plain(
            work: SearchBuffers,
            count: int,
            settings: KernelSettings,
            kind: int,  # noqa: ARG001
            factor: float32,
            first: int,
        ) -> None:
            plain(work, count, settings, factor, first)

        return add_plain
    f16 = _adder(_error_with(value_of, _quotient_of(F16), F16))
    bf16 = _adder(_error_with(value_of, _quotient_of(BF16), BF16))
    by_inverse = _adder(_error_with(value_of, _quotient_by_inverse, BF16))

    @merged
    def add_errors(
        work: SearchBuffers,
        count: int,
        settings: KernelSettings,
        kind: int,
        factor: float32,
        first: int,
    ) -> None:
        if settings.quotient == F32:
            plain(work, count, settings, factor, first)
        elif settings.quotient == F16:
            f16(work, count, settings, factor, first)
        elif kind == BF16 and _are_moderate(work.scales[first:]):
            by_inverse(work, count, settings, factor, first)
        else:
            bf16(work, count, settings, factor, first)

    return add_errors


@inlined
def _are_moderate(scales: Array) -> bool:
    """Whether no scale is so small or so large that its inverse loses digits."""
    found = True
    for k in range(AT_ONCE):
        found = found and abs(scales[k]) > _LEAST and abs(scales[k]) < _MOST
    return found


def _adder(error_with: Callable[..., Any]) -> Callable[..., None]:
    @merged
    def add(
        work: SearchBuffers, count: int, settings: KernelSettings, factor: float32, first: int
    ) -> None:
        """Add the errors of a piece for some parts, those of four weights at once."""
        weights, sums, scales = work.weights, work.sums[first:], work.scales[first:]
        inverses, marks = work.inverses[first:], work.marks[first:]
        for i in range(0, count, 4):
            a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            for k in range(AT_ONCE):
                scale, inverse, mark = scales[k], inverses[k], marks[k]
                p = error_with(a, scale, inverse, mark, settings, factor)
                q = error_with(b, scale, inverse, mark, settings, factor)
                r = error_with(c, scale, inverse, mark, settings, factor)
                s = error_with(d, scale, inverse, mark, settings, factor)
                sums[k] += float32(p + q) + float32(r + s)

    return add


def _error_with(
    value_of: Callable[..., Any], quotient_of: Callable[..., Any], kind: int
) -> Callable[..., Any]:
    @merged
    def error_with(
        weight: float32,
        scale: float32,
        inverse: float32,
        mark: float32,
        settings: KernelSettings,
        factor: float32,
    ) -> float32:
        quotient = quotient_of(weight, scale, inverse)
        value = value_of(weight, quotient, scale, mark, settings, kind)
        error = squared(float32(value - weight))
        return squared(float32(error * factor)) if settings.fourth else error

    return error_with


def _quotient_of(kind: int) -> Callable[..., Any]:
    @merged
    def quotient(weight: float32, scale: float32, inverse: float32) -> float32:  # noqa: ARG001
        """Weight / scale, rounded to a dtype."""
        return round_to(float32(weight / scale), kind)

    return quotient


@merged
def _quotient_by_inverse(weight: float32, scale: float32, inverse: float32) -> float32:  # noqa: ARG001
    """The same for weights and scales of BF16, whose quotients are rounded to it.

    Their quotient is 2**-17 of itself away from every number in the middle between two of BF16, so
    that neither the product's error, below 2**-22, nor ties can change what it is rounded to.
    """
    bits = bits_of(float32(weight * inverse))
    return float_of(uint32(bits + _HALF_BF16) & _BF16)
