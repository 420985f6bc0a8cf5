"""Rounding weights to E4M3 (FP8) with floating-point scales: scale = max|w| / 448."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy import float32, uint8, uint32

from ctcli.ops.elements import (
    E4M3_MAX,
    E4M3_NAN,
    bits_of,
    e4m3_code,
    float_of,
    from_e4m3,
    round_e4m3,
    round_scale,
)
from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loops import Kernels, decoder, encoder, searcher
from ctcli.ops.pieces import Source, Work, divide
from ctcli.ops.tiles import Settings, Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MAGNITUDE, _SIGN = uint32(0x7FFFFFFF), uint32(0x80000000)
_SIXTEENTH, _SMALLEST = float32(2.0**-4), float32(2.0**-10)
_EXPONENT = uint32(0x7F800000)


@inlined
def _scale_of(low: float32, high: float32, settings: Settings) -> tuple[float32, float32]:  # noqa: ARG001
    scale = round_scale(float32(high / E4M3_MAX), settings.kind)
    return scale, float32(0)


@inlined
def round_elements(work: Work, count: int) -> None:
    """Quotients, which are in the values, to codes and values; E4M3, also MXFP8's."""
    weights, scales, values, codes = work.weights, work.scales, work.values, work.codes
    for i in range(count):
        quotient = values[i]
        rounded = round_e4m3(float_of(bits_of(quotient) & _MAGNITUDE))
        sign = bits_of(weights[i]) & _SIGN
        code = uint8(e4m3_code(rounded) | (sign >> uint32(24)))
        codes[i] = code if quotient == quotient else E4M3_NAN  # noqa: PLR0124
        values[i] = float_of(bits_of(float32(rounded * scales[i])) | sign)


@inlined
def read_elements(work: Work, count: int) -> None:
    """Codes to values, and squares of half the distance to the next larger magnitude."""
    for i in range(count):
        value = from_e4m3(work.codes[i])
        work.values[i] = value
        half = float32(float_of(bits_of(value) & _EXPONENT) * _SIXTEENTH)
        half = half if half > _SMALLEST else _SMALLEST  # noqa: FURB136
        work.squares[i] = half * half


@inlined
def _encode(work: Work, count: int, settings: Settings) -> None:
    divide(work, count, settings.quotient)
    round_elements(work, count)


@inlined
def _decode(work: Work, count: int, settings: Settings) -> None:  # noqa: ARG001
    read_elements(work, count)


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
