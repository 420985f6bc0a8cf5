"""Quantizing and reading back a block tile by tile: the loops that all numeric formats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, float64, isfinite

from ctcli.ops.jit import CompiledKernel, inlined
from ctcli.ops.pieces import (
    PIECE,
    PieceBuffers,
    PieceInput,
    exact_squares,
    fetch,
    load,
    store,
    take_squares,
    total,
)
from ctcli.ops.tiles import KernelSettings, Tiles, find_ranges, spread_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_ADDED = 64
"""Pieces whose squares are added up in float32, before the sums go to float64."""


class Kernels(NamedTuple):
    """A format's: see `_encoder`, `searches.searcher`, `_decoder`."""

    encode: Callable[..., tuple[float, float]]
    search: Callable[..., None]
    decode: Callable[..., None]


def kernels(
    name: str,
    scale_of: Callable[..., Any],
    encode: Callable[..., Any],
    search: Callable[..., Any],
    decode: Callable[..., Any],
) -> Kernels:
    """The kernels of a format: loops around its arithmetic.

    Args:
        name: the format's.
        scale_of: the range of a tile, low and high, and settings -> its scale, and its zero point
            or what is to be kept in its place.
        encode: a piece, how many elements it has, and settings: from weights, scales and zero
            points to codes and values, whose squared errors are added to those of the piece.
        search: a kernel of `searches.searcher`.
        decode: as `encode`: from codes to values before they are scaled, and squares of half the
            step at each.
    """
    return Kernels(
        CompiledKernel(_encoder(scale_of, encode), f"{name}.encode"),
        search,
        CompiledKernel(_decoder(decode), f"{name}.decode"),
    )


def _encoder(scale_of: Callable[..., Any], encode: Callable[..., Any]) -> Callable[..., Any]:
    encode_all = _once(scale_of, encode)

    def encode_tiles(
        source: PieceInput,
        settings: KernelSettings,
        work: PieceBuffers,
        tiles: Tiles,
        has_ranges: bool,
        codes: Array,
    ) -> tuple[float64, float64]:
        """Quantize a block of a weight.

        Args:
            source: the block.
            settings: how to quantize it.
            work: scratch, zeros at first.
            tiles: written, or read as far as `has_ranges` says.
            has_ranges: whether the ranges of tiles are known.
            codes: uint8 [rows, bytes], written; padding bits are left as they are.

        Returns:
            The sums of squares of the error of what a reader computes, and of the weight. Only of
            NaN and infinities they are not finite.
        """
        error, energy = float64(0), float64(0)
        for is_exact in (False, True):
            error, energy = encode_all(source, settings, work, tiles, has_ranges, codes, is_exact)
            found = take_squares(work)
            if not is_exact:
                error, energy = error + found[0], energy + found[1]
            if isfinite(error) and isfinite(energy):
                break  # else squares are too large for float32, perhaps
        return error, energy

    return encode_tiles


def _once(scale_of: Callable[..., Any], encode: Callable[..., Any]) -> Callable[..., Any]:
    scale_all, encode_area = _scaler(scale_of), _area_encoder(encode)

    @inlined
    def encode_all(
        source: PieceInput,
        settings: KernelSettings,
        work: PieceBuffers,
        tiles: Tiles,
        has_ranges: bool,
        codes: Array,
        is_exact: bool,
    ) -> tuple[float64, float64]:
        """See `encode_tiles`; with exact sums, or without what is left in the work of others."""
        error, energy, added = float64(0), float64(0), 0
        for top in range(0, settings.rows, settings.height):
            for left in range(0, settings.columns, settings.step):
                if not has_ranges:
                    find_ranges(source, settings, tiles, top, left)
                scale_all(settings, tiles, top, left)
                spread_all(settings, work, tiles, top, left)
                some = encode_area(source, settings, work, codes, top, left, is_exact, added)
                error, energy, added = error + some[0], energy + some[1], some[2]
        return error, energy

    return encode_all


def _area_encoder(encode: Callable[..., Any]) -> Callable[..., Any]:
    @inlined
    def encode_area(
        source: PieceInput,
        settings: KernelSettings,
        work: PieceBuffers,
        codes: Array,
        top: int,
        left: int,
        is_exact: bool,
        added: int,
    ) -> tuple[float64, float64, int]:
        """Quantize an area.

        Returns:
            What goes to the sums, and how many pieces' squares are left in the work.
        """
        error, energy = float64(0), float64(0)
        right = min(left + settings.step, settings.columns)
        for row in range(top, min(top + settings.height, settings.rows)):
            for start in range(left, right, PIECE):
                count = min(PIECE, right - start)
                load(source, row, start, count, work.weights)
                encode(work, count, settings)
                store(work.codes, count, settings.packed, codes[row], start)
                added += 1
                if is_exact:
                    found = exact_squares(work, count)
                    error, energy = error + found[0], energy + found[1]
                elif added == _ADDED:
                    found = take_squares(work)
                    error, energy, added = error + found[0], energy + found[1], 0
        return error, energy, added

    return encode_area


def _scaler(scale_of: Callable[..., Any]) -> Callable[..., Any]:
    @inlined
    def scale_all(settings: KernelSettings, tiles: Tiles, top: int, left: int) -> None:
        """The scales of an area's tiles."""
        right = min(left + settings.step, settings.columns)
        down, across = top // settings.height, left // settings.width
        stop = (right + settings.width - 1) // settings.width
        lows, highs = tiles.lows[down, across:stop], tiles.highs[down, across:stop]
        scales, marks = tiles.scales[down, across:stop], tiles.marks[down, across:stop]
        for i in range(lows.size):
            scales[i], marks[i] = scale_of(lows[i], highs[i], settings)

    return scale_all


def _decoder(decode: Callable[..., Any]) -> Callable[..., Any]:
    def decode_tiles(
        codes: Array,
        settings: KernelSettings,
        work: PieceBuffers,
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
