"""Quantizing a block tile by tile, and comparing: the loops that all numeric formats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy import float32, float64, isfinite

from ctcli.ops.jit import CompiledKernel, inlined
from ctcli.ops.pieces import (
    PIECE,
    PieceBuffers,
    PieceInput,
    add_to_tiles,
    compare_piece,
    exact_squares,
    fetch,
    load,
    store,
    take_squares,
)
from ctcli.ops.tiles import KernelSettings, Tiles, find_ranges, spread_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


_ADDED = 64
"""Pieces whose squares are added up in float32, before the sums go to float64."""
_LEAST = float64(2.0**-60)
"""Of sums of squares: float32's smallest, 2**-126 and less, are nothing beside them."""


class Kernels(NamedTuple):
    """A format's: see `_encoder`, `searches.searcher`, `_comparer`."""

    encode: Callable[..., None]
    search: Callable[..., None]
    compare: Callable[..., tuple[float, float]]


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
        scale_of: the range of a tile, low and high, settings, and the kind of D -> its scale, and
            its zero point or what is to be kept in its place.
        encode: a piece, how many elements it has, and settings: from weights, scales and zero
            points to codes and values, whose squared errors are added to those of the piece.
        search: a kernel of `searches.searcher`.
        decode: as `encode`: from codes to values before they are scaled, and squares of half the
            step at each; it returns that square where all are alike, else zero.
    """
    return Kernels(
        CompiledKernel(_encoder(scale_of, encode), f"{name}.encode"),
        search,
        CompiledKernel(_comparer(decode), f"{name}.compare"),
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
        sums: Array,
    ) -> None:
        """Quantize a block of a weight, or of several, which lie one below the other.

        Args:
            source: the block.
            settings: how to quantize it.
            work: scratch, zeros at first.
            tiles: written, or read as far as `has_ranges` says.
            has_ranges: whether the ranges of tiles are known.
            codes: uint8 [rows, bytes], written; padding bits are left as they are.
            sums: float64 [weights, 2], written for each: the sums of squares of the error of what
                a reader computes, and of the weight. Only of NaN and infinities they are not
                finite.
        """
        count = sums.shape[0]
        for i in range(count):
            rows = settings.rows * i // count, settings.rows * (i + 1) // count
            for is_exact in (False, True):
                error, energy = encode_all(
                    source, settings, work, tiles, has_ranges, codes, rows, is_exact
                )
                found = take_squares(work)
                if not is_exact:
                    error, energy = error + found[0], energy + found[1]
                sums[i, 0], sums[i, 1] = error, energy
                if isfinite(error) and isfinite(energy):
                    break  # else squares are too large for float32, perhaps

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
        rows: tuple[int, int],
        is_exact: bool,
    ) -> tuple[float64, float64]:
        """Quantize from a row to another.

        Returns:
            Sums as `encode_tiles` has them: exact ones, or without what is left in the work.
        """
        error, energy, added = float64(0), float64(0), 0
        for top in range(rows[0], rows[1], settings.height):
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
                    found = exact_squares(work, 0, count)
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
            scales[i], marks[i] = scale_of(lows[i], highs[i], settings, settings.kind)

    return scale_all


def _comparer(decode: Callable[..., Any]) -> Callable[..., Any]:
    compare_all = _compare_once(decode)

    def compare_tiles(
        source: PieceInput,
        codes: Array,
        settings: KernelSettings,
        work: PieceBuffers,
        tiles: Tiles,
        squares: Array,
        bounds: Array,
    ) -> tuple[float64, float64]:
        """Compare what a reader computes with a block of a weight.

        Args:
            source: the block.
            codes: uint8 [rows, bytes].
            settings: how it was quantized.
            work: scratch, zeros at first.
            tiles: scales and zero points.
            squares: float64 [row tiles, column tiles], written: sums of squared errors.
            bounds: likewise: sums of squares of half the step at each value.

        Returns:
            The sum of squares of the weight, and the largest error.
        """
        energy, largest = float64(0), float32(0)
        for is_exact in (False, True):
            squares[:] = 0.0
            bounds[:] = 0.0
            found = compare_all(source, codes, settings, work, tiles, squares, bounds, is_exact)
            energy, largest = found
            if energy > _LEAST and isfinite(energy) and isfinite(squares.sum()):
                break  # else squares are too large for float32, or too small
        take_squares(work)
        for down in range(bounds.shape[0]):
            for across in range(bounds.shape[1]):
                scale = float64(tiles.scales[down, across])
                bounds[down, across] *= scale * scale
        return energy, float64(largest)

    return compare_tiles


def _compare_once(decode: Callable[..., Any]) -> Callable[..., Any]:
    compare_area = _area_comparer(decode)

    @inlined
    def compare_all(
        source: PieceInput,
        codes: Array,
        settings: KernelSettings,
        work: PieceBuffers,
        tiles: Tiles,
        squares: Array,
        bounds: Array,
        is_exact: bool,
    ) -> tuple[float64, float32]:
        """See `compare_tiles`; with exact sums of squares, or in float32."""
        energy, largest = float64(0), float32(0)
        for top in range(0, settings.rows, settings.height):
            for left in range(0, settings.columns, settings.step):
                down, across = top // settings.height, left // settings.width
                spread_all(settings, work, tiles, top, left)
                sums = squares[down, across:], bounds[down, across:]
                some = compare_area(source, codes, settings, work, top, left, *sums, is_exact)
                energy, largest = energy + some[0], max(largest, some[1])
        return energy, largest

    return compare_all


def _area_comparer(decode: Callable[..., Any]) -> Callable[..., Any]:
    @inlined
    def compare_area(
        source: PieceInput,
        codes: Array,
        settings: KernelSettings,
        work: PieceBuffers,
        top: int,
        left: int,
        squares: Array,
        bounds: Array,
        is_exact: bool,
    ) -> tuple[float64, float32]:
        """Compare an area, and add to the sums of its tiles; the same of it alone."""
        energy, largest = float64(0), float32(0)
        right = min(left + settings.step, settings.columns)
        for row in range(top, min(top + settings.height, settings.rows)):
            for start in range(left, right, PIECE):
                count = min(PIECE, right - start)
                fetch(codes[row], start, count, settings.packed, work.codes)
                alike = decode(work, count, settings)
                load(source, row, start, count, work.weights)
                some = compare_piece(work, count)
                energy += exact_squares(work, 0, count)[1] if is_exact else some[0]
                largest = max(largest, some[1])
                add_to_tiles(work, count, settings.width, alike, is_exact, squares, bounds)
        return energy, largest

    return compare_area
