"""Blocks of a weight on the CPU: from arrays to the kernels of a format, and back."""

from __future__ import annotations

import threading
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from numpy import float32

from ctcli.ops.bits import from_floats, to_floats
from ctcli.ops.comparing import Deviation, worst
from ctcli.ops.elements import F16, F32, KINDS
from ctcli.ops.jit import kernel
from ctcli.ops.native import Prepared
from ctcli.ops.packing import pack_words, unpack_words
from ctcli.ops.pieces import PIECE, PieceBuffers, PieceInput
from ctcli.ops.quantized import QuantizedBlock, Rounding, Search
from ctcli.ops.searches import AT_ONCE, search_buffers
from ctcli.ops.tiles import KernelSettings, Tiles, find_all_ranges

if TYPE_CHECKING:
    from ctcli.ops.loops import Kernels
    from ctcli.ops.quantized import Array

_MOST = 448.0 * 6  # the largest E4M3 scale times the largest E2M1 element
_TINY = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126, "F64": 0.0}

_own = threading.local()


@kernel
def _find_all_ranges(source: PieceInput, settings: KernelSettings, tiles: Tiles) -> None:
    find_all_ranges(source, settings, tiles)


class Compiled:
    """See `quantized.Body`."""

    def quantize(
        self, block: Array, tag: str, rounding: Rounding, ranges: Array | None, count: int = 1
    ) -> QuantizedBlock:
        """See `quantized.Body`."""
        source, kernels = _source(block, tag), _kernels(rounding)
        settings, how = _prepared(block.shape, rounding)
        work, tiles = _work(settings.symmetric), _tiles(settings, ranges)
        has_ranges = ranges is not None
        if rounding.search and not has_ranges:
            parts = _parts(rounding.search)
            kernels.search(source, how, search_buffers(), tiles, False, parts, np.empty((0, 0, 0)))
            has_ranges = True
        nbytes = bytes_of(settings.columns, rounding)
        if settings.packed != _spacing(rounding):  # then they are packed afterwards
            nbytes = settings.columns
        codes = np.zeros((settings.rows, nbytes), np.uint8)
        sums = np.empty((count, 2))
        kernels.encode(source, how, work, tiles, has_ranges, codes, sums)
        if settings.packed != _spacing(rounding):
            codes = pack_words(codes, rounding.bits).view(np.uint8)
        return QuantizedBlock(codes, tiles.scales, tiles.marks, sums)

    def errors(self, block: Array, tag: str, rounding: Rounding, ranges: Array) -> Array:
        """See `quantized.Body`."""
        assert rounding.search, "there is one"
        settings, parts = _settings(block.shape, rounding), _parts(rounding.search)
        tiles = _tiles(settings, ranges)
        errors = np.empty((parts.size, *tiles.lows.shape))
        search = _kernels(rounding).search
        search(_source(block, tag), settings, search_buffers(), tiles, True, parts, errors)
        return errors.reshape(parts.size, -1)[: len(rounding.search.parts)]

    def widest(self, block: Array, tag: str, rounding: Rounding) -> Array:
        """See `quantized.Body`."""
        settings = _settings(block.shape, rounding)
        tiles = _tiles(settings, None)
        _find_all_ranges(_source(block, tag), settings, tiles)
        return np.stack([-tiles.lows.reshape(-1), tiles.highs.reshape(-1)])

    def largest(self, block: Array, tag: str) -> Array:
        """See `quantized.Body`."""
        flat = block.reshape(1, -1)
        found: Array = self.widest(flat, tag, Rounding("float8", "F32", False, (None, None), 8))[1]
        return found


def compare(
    block: Array,
    tag: str,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    rounding: Rounding,
) -> Deviation:
    """Compare a quantized block, as a reader computes it in float32, with what it should be.

    Args:
        block: what it should be, [rows, columns]; see `quantized.Body`.
        tag: its dtype.
        codes: uint8 [rows, bytes].
        scales: float32, [row tiles, column tiles] or 1 in their place; those of nvfp4 over its
            global scale, and those of mx as powers.
        zeros: zero points, likewise.
        rounding: how it was quantized.
    """
    settings = _settings(block.shape, rounding)
    tiles = _tiles(settings, None)
    tiles.scales[:] = scales
    tiles.marks[:] = 0 if zeros is None else zeros
    squares, bounds = np.zeros((2, *tiles.scales.shape))
    if settings.packed != _spacing(rounding):
        codes = unpack_words(codes.view(np.uint32), rounding.bits, settings.columns)
    work, source = _work(settings.symmetric), _source(block, tag)
    sums = _kernels(rounding).compare(source, codes, settings, work, tiles, squares, bounds)
    return worst(squares, bounds, sums, block.size, (settings.height, settings.width))


def global_scale(largest: float, dtype: str) -> float32:
    """NVFP4's, as readers divide by it: 448 * 6 / largest; 1 where there is nothing to scale.

    Args:
        largest: the largest magnitude of the weights that share it.
        dtype: D, of the weights: both steps are rounded to it.
    """
    if not largest > 0:
        return float32(1)
    with np.errstate(over="ignore", divide="ignore"):
        inverse = np.array([1], np.float32) / max(float32(largest), float32(_TINY[dtype]))
        scale = _rounded(_rounded(inverse, dtype) * float32(_MOST), dtype)[0]
    return float32(scale if np.isfinite(scale) else 1)


def e4m3_values(codes: Array) -> Array:
    """The float32 values of E4M3 codes; those of NaN read as +-480.

    Shifted by seven, a code's exponent and mantissa are those of a float16 that is 2**8 smaller.
    """
    halves = codes.view(np.int8).astype(np.int16) << 7 & ~0x4000  # one of the two signs
    values: Array = halves.view(np.float16).astype(np.float32) * float32(256)
    return values


def bytes_of(columns: int, rounding: Rounding) -> int:
    """Bytes of a row of codes."""
    if rounding.packed:
        return (columns * rounding.bits + 31) // 32 * 4
    return (columns * _spacing(rounding) + 7) // 8


def _rounded(x: Array, dtype: str) -> Array:
    return to_floats(from_floats(x, dtype), dtype, np.float32)


def _kernels(rounding: Rounding) -> Kernels:
    kernels: Kernels = import_module(f"ctcli.ops.{rounding.format}").KERNELS
    return kernels


def _spacing(rounding: Rounding) -> int:
    """Bits from one code to the next."""
    if rounding.format == "integers":
        return rounding.bits if rounding.packed else 8
    return rounding.bits


@lru_cache(maxsize=256)
def _prepared(shape: tuple[int, ...], rounding: Rounding) -> tuple[KernelSettings, Prepared]:
    settings = _settings(shape, rounding)
    return settings, Prepared(settings)


def _settings(shape: tuple[int, ...], rounding: Rounding) -> KernelSettings:
    rows, columns = shape
    height, width = rounding.tile[0] or rows, rounding.tile[1] or columns
    # Tiles of any width may begin within a byte.
    is_aligned = width % 8 == 0 or width >= columns
    total = global_scale(rounding.total, rounding.dtype) if rounding.format == "nvfp4" else 1
    return KernelSettings(
        rows=rows,
        columns=columns,
        height=max(height, 1),
        width=max(width, 1),
        step=PIECE // width * width if 0 < width <= PIECE else max(width, 1),
        kind=KINDS[rounding.dtype],
        quotient=KINDS[rounding.dtype] if rounding.rounds_quotients else F32,
        bits=rounding.bits,
        packed=_spacing(rounding) if is_aligned else 8,
        offset=1 << (rounding.bits - 1) if rounding.packed else 0,
        symmetric=rounding.symmetric,
        signed=rounding.signed,
        fourth=rounding.search is not None and rounding.search.power == 4,
        total=float32(total),
    )


def _source(block: Array, tag: str) -> PieceInput:
    if KINDS[tag] <= F16 and block.dtype == np.uint16:
        return PieceInput(np.ascontiguousarray(block), np.empty((0, 0), np.float32), KINDS[tag])
    floats = block if block.dtype.kind == "f" else block.view(f"f{block.itemsize}")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(floats, np.float32)
    return PieceInput(np.empty((0, 0), np.uint16), floats, F32)


def _work(symmetric: bool) -> Prepared:
    """This thread's scratch; where there are no zero points, those in it stay zero."""
    name = "symmetric" if symmetric else "asymmetric"
    found: Prepared | None = _own.__dict__.get(name)
    if found is None:
        a, b, c, d, e, f, g = np.zeros((7, PIECE), np.float32)
        work = PieceBuffers(a, b, c, d, e, f, g, np.empty(PIECE + 8, np.uint8))
        found = _own.__dict__[name] = Prepared(work)
    return found


def _tiles(settings: KernelSettings, ranges: Array | None) -> Tiles:
    down, across = -(-settings.rows // settings.height), -(-settings.columns // settings.width)
    found = Tiles(*np.zeros((4, down, across), np.float32))
    if ranges is not None:
        found.lows[:] = ranges[0].reshape(-1, 1)
        found.highs[:] = ranges[1].reshape(-1, 1)
    return found


def _parts(search: Search) -> Array:
    """The parts, and the last one again, until they fill whole vectors."""
    parts = np.array(search.parts, np.float32)
    return np.pad(parts, (0, -len(parts) % AT_ONCE), "edge")
