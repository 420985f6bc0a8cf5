"""Rounding weights to integers of B bits, with a scale and perhaps a zero point.

Symmetric: scale = max|w| / ((2^B - 1) / 2), q = round(w / scale). Asymmetric: the range, with zero
in it, is divided in 2^B - 1 steps and a zero point z added: q = round(w / scale + z).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy import float32, int8, int32, uint8, uint32

from ctcli.ops.elements import bits_of, round_scale, round_to
from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loops import Kernels, decoder, encoder, searcher
from ctcli.ops.pieces import Source, Work, divide, round_all
from ctcli.ops.tiles import Settings, Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Float32 next to this has steps of one; its bits end in those of the integer that was added.
_MAGIC = float32(1.5 * 2.0**23)
_ZERO, _QUARTER = float32(0), float32(0.25)


@inlined
def _round(x: float32, lowest: float32, highest: float32) -> float32:
    """The nearest integer of a range, ties to even; 0 for NaN, as x86 converts it."""
    x = lowest if x < lowest else x  # noqa: FURB136 (NaN)
    x = highest if x > highest else x  # noqa: FURB136
    x = x if x == x else _ZERO  # noqa: PLR0124
    return float32(float32(x + _MAGIC) - _MAGIC)


@inlined
def _scale_of(low: float32, high: float32, settings: Settings) -> tuple[float32, float32]:
    kind, steps = settings.kind, float32((1 << settings.bits) - 1)
    if settings.symmetric:
        return round_scale(float32(high / float32(steps / float32(2))), kind), _ZERO
    lowest = float32(-(1 << (settings.bits - 1)))
    scale = round_to(float32(round_to(float32(high - low), kind) / steps), kind)
    # An empty group gives 0 / 0 here, which becomes 0.
    zero = round_to(float32(lowest - round_to(float32(low / scale), kind)), kind)
    return round_scale(scale, kind), _round(zero, lowest, float32(lowest + steps))


@inlined
def _encode(work: Work, count: int, settings: Settings) -> None:
    lowest = float32(-(1 << (settings.bits - 1)))
    highest, offset = float32(-lowest - float32(1)), uint32(settings.offset)
    values, zeros, codes, scales = work.values, work.zeros, work.codes, work.scales
    divide(work, count, settings.quotient)
    if not settings.symmetric:
        for i in range(count):
            values[i] += zeros[i]
        round_all(values, count, settings.quotient)
    for i in range(count):
        rounded = _round(values[i], lowest, highest)
        codes[i] = uint8((bits_of(float32(rounded + _MAGIC)) + offset) & uint32(0xFF))
        values[i] = rounded
    if not settings.symmetric:
        for i in range(count):
            values[i] -= zeros[i]
    for i in range(count):
        values[i] *= scales[i]


@inlined
def _decode(work: Work, count: int, settings: Settings) -> None:
    values, zeros, codes, offset = work.values, work.zeros, work.codes, settings.offset
    for i in range(count):
        # Codes without an offset are two's complement.
        values[i] = float32(int32(codes[i]) - int32(offset)) if offset else float32(int8(codes[i]))
        work.squares[i] = _QUARTER
    if not settings.symmetric:
        for i in range(count):
            values[i] -= zeros[i]


_encode_tiles = encoder(_scale_of, _encode)
_search_tiles = searcher(_scale_of, _encode)
_decode_tiles = decoder(_decode)


@kernel
def encode(
    source: Source, settings: Settings, work: Work, tiles: Tiles, has_ranges: bool, codes: Array
) -> tuple[float, float]:
    """See `loops.encoder`."""
    return _encode_tiles(source, settings, work, tiles, has_ranges, codes)  # type: ignore[no-any-return]


@kernel
def search(
    source: Source,
    settings: Settings,
    work: Work,
    tiles: Tiles,
    has_ranges: bool,
    shrinks: Array,
    errors: Array,
) -> None:
    """See `loops.searcher`."""
    _search_tiles(source, settings, work, tiles, has_ranges, shrinks, errors)


@kernel
def decode(
    codes: Array, settings: Settings, work: Work, tiles: Tiles, values: Array, bounds: Array
) -> None:
    """See `loops.decoder`."""
    _decode_tiles(codes, settings, work, tiles, values, bounds)


KERNELS = Kernels(encode, search, decode)
