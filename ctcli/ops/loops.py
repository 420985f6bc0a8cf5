"""Quantizing and reading back a block tile by tile: the loops that all numeric formats share.

What is defined within a function here is `merged` into the kernels: numba tells functions that it
compiles by their names, which would be the same for all formats, and takes one for another when it
loads kernels that different processes have compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, float64

from ctcli.ops.jit import inlined, merged
from ctcli.ops.pieces import PIECE, Source, Work, fetch, load, square_errors, store, sums_of, total
from ctcli.ops.tiles import Settings, Tiles, find_ranges, spread_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_ONE = float32(1)


class Kernels(NamedTuple):
    """A format's: see `encoder`, `searcher`, `decoder`."""

    encode: Callable[..., tuple[float, float]]
    search: Callable[..., None]
    decode: Callable[..., None]


def encoder(scale_of: Callable[..., Any], encode: Callable[..., Any]) -> Callable[..., Any]:
    """The loops around the arithmetic of a format.

    Args:
        scale_of: the range of a tile, low and high, and settings -> its scale, and its zero point
            or what is to be kept in its place.
        encode: a piece, how many elements it has, and settings: from weights, scales and zero
            points to codes and values.

    Returns:
        See `encode_tiles` below.
    """

    scale_all = _scaler(scale_of)

    @merged
    def encode_tiles(
        source: Source,
        settings: Settings,
        work: Work,
        tiles: Tiles,
        has_ranges: bool,
        codes: Array,
    ) -> tuple[float64, float64]:
        """Quantize a block of a weight.

        Args:
            source: the block.
            settings: how to quantize it.
            work: scratch.
            tiles: written, or read as far as `has_ranges` says.
            has_ranges: whether the ranges of tiles are known.
            codes: uint8 [rows, bytes], written; padding bits are left as they are.

        Returns:
            The sums of squares of the error of what a reader computes, and of the weight.
        """
        error, energy = float64(0), float64(0)
        for top in range(0, settings.rows, settings.height):
            for left in range(0, settings.columns, settings.step):
                right = min(left + settings.step, settings.columns)
                down, across = top // settings.height, left // settings.width
                if not has_ranges:
                    find_ranges(source, settings, work, tiles, top, left)
                stop = (right + settings.width - 1) // settings.width
                scale_all(settings, tiles, down, across, stop, _ONE)
                spread_all(settings, work, tiles, top, left)
                for row in range(top, min(top + settings.height, settings.rows)):
                    for start in range(left, right, PIECE):
                        count = min(PIECE, right - start)
                        load(source, row, start, count, work.weights)
                        encode(work, count, settings)
                        store(work.codes, count, settings.packed, codes[row], start)
                        found = sums_of(work, count)
                        error += found[0]
                        energy += found[1]
        return error, energy

    return encode_tiles


def searcher(scale_of: Callable[..., Any], encode: Callable[..., Any]) -> Callable[..., Any]:
    """The search for ranges of least error; arguments as `encoder`'s."""

    scale_all, add_errors = _scaler(scale_of), _error_adder(encode)

    @merged
    def search_tiles(
        source: Source,
        settings: Settings,
        work: Work,
        tiles: Tiles,
        has_ranges: bool,
        shrinks: Array,
        errors: Array,
    ) -> None:
        """The squared error of each tile for parts of its range.

        Args:
            source: the block.
            settings: how to quantize it.
            work: scratch.
            tiles: written, or read as far as `has_ranges` says. Its own ranges are shrunk to where
                the error is least, of equals to the first.
            has_ranges: whether the ranges of tiles are known.
            shrinks: the parts, float32 [n].
            errors: float64 [n, row tiles, column tiles]; with own ranges, scratch of [n, 1, column
                tiles].
        """
        for top in range(0, settings.rows, settings.height):
            for left in range(0, settings.columns, settings.step):
                right = min(left + settings.step, settings.columns)
                down, across = top // settings.height, left // settings.width
                stop = (right + settings.width - 1) // settings.width
                at = down if has_ranges else 0
                if not has_ranges:
                    find_ranges(source, settings, work, tiles, top, left)
                for k in range(shrinks.size):
                    changed = scale_all(settings, tiles, down, across, stop, shrinks[k]) or k == 0
                    for tile in range(across, stop):
                        # With the same scales, errors are the same.
                        errors[k, at, tile] = float64(0) if changed else errors[k - 1, at, tile]
                    if changed:
                        spread_all(settings, work, tiles, top, left)
                        add_errors(source, settings, work, top, left, errors[k, at])
                if not has_ranges:
                    _shrink(tiles, down, across, stop, shrinks, errors)

    return search_tiles


def _scaler(scale_of: Callable[..., Any]) -> Callable[..., Any]:
    @merged
    def scale_all(
        settings: Settings, tiles: Tiles, down: int, across: int, stop: int, shrink: float32
    ) -> bool:
        """The scales of some tiles for a part of their ranges; whether any has changed."""
        lows, highs = tiles.lows[down, across:stop], tiles.highs[down, across:stop]
        scales, marks = tiles.scales[down, across:stop], tiles.marks[down, across:stop]
        changed = False
        for i in range(lows.size):
            low, high = float32(lows[i] * shrink), float32(highs[i] * shrink)
            scale, mark = scale_of(low, high, settings)
            changed |= scale != scales[i] or mark != marks[i]
            scales[i], marks[i] = scale, mark
        return changed

    return scale_all


def _error_adder(encode: Callable[..., Any]) -> Callable[..., Any]:
    @merged
    def add_errors(
        source: Source, settings: Settings, work: Work, top: int, left: int, errors: Array
    ) -> None:
        """The squared error of each tile of an area, added to those of all columns of tiles."""
        right, across = min(left + settings.step, settings.columns), left // settings.width
        for row in range(top, min(top + settings.height, settings.rows)):
            for start in range(left, right, PIECE):
                count = min(PIECE, right - start)
                load(source, row, start, count, work.weights)
                encode(work, count, settings)
                square_errors(work, count)
                width = min(settings.width, PIECE)
                for tile in range((count + width - 1) // width):
                    last = min((tile + 1) * width, count)
                    errors[across + tile] += total(work.squares, tile * width, last)

    return add_errors


@inlined
def _shrink(tiles: Tiles, down: int, across: int, stop: int, shrinks: Array, errors: Array) -> None:
    """Shrink ranges to where the error is least; of equals, and of NaN, the first."""
    for tile in range(across, stop):
        best = 0
        for k in range(1, shrinks.size):
            if errors[k, 0, tile] < errors[best, 0, tile]:
                best = k
        tiles.lows[down, tile] *= shrinks[best]
        tiles.highs[down, tile] *= shrinks[best]


def decoder(decode: Callable[..., Any]) -> Callable[..., Any]:
    """The loops around the arithmetic of a format.

    Args:
        decode: a piece, how many elements it has, and settings: from codes to values before they
            are scaled, and squares of half the step at each.

    Returns:
        See `decode_tiles` below.
    """

    @merged
    def decode_tiles(
        codes: Array,
        settings: Settings,
        work: Work,
        tiles: Tiles,
        values: Array,
        bounds: Array,
    ) -> None:
        """Read a block of a weight.

        Args:
            codes: uint8 [rows, bytes].
            settings: how it was quantized.
            work: scratch.
            tiles: scales and zero points.
            values: float32 [rows, columns], written.
            bounds: float32 [row tiles, column tiles], written: sums of squares of half the step at
                each value.
        """
        for top in range(0, settings.rows, settings.height):
            for left in range(0, settings.columns, settings.step):
                right = min(left + settings.step, settings.columns)
                down, across = top // settings.height, left // settings.width
                spread_all(settings, work, tiles, top, left)
                for row in range(top, min(top + settings.height, settings.rows)):
                    for start in range(left, right, PIECE):
                        count = min(PIECE, right - start)
                        fetch(codes[row], start, count, settings.packed, work.codes)
                        decode(work, count, settings)
                        some, scales = values[row, start : start + count], work.scales
                        for i in range(count):
                            some[i] = work.values[i] * scales[i]
                        width = min(settings.width, PIECE)
                        for tile in range((count + width - 1) // width):
                            last = min((tile + 1) * width, count)
                            found = total(work.squares, tile * width, last)
                            bounds[down, across + tile] += float32(found)
        for down in range(bounds.shape[0]):
            for across in range(bounds.shape[1]):
                scale = tiles.scales[down, across]
                bounds[down, across] *= float32(scale * scale)

    return decode_tiles
