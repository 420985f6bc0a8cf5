"""Rounding weights to E2M1 with an E4M3 scale for each group and a float32 scale above them.

global = 448 * 6 / max|w|; scale = e4m3(global * max|group| / 6); value = e2m1(w * global / scale).
The rounding steps are compressed-tensors': the reciprocal first, and everything up to the scale's
own rounding in the weight's dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy import float32, uint8, uint32

from ctcli.ops.elements import (
    E2M1_MAX,
    E2M1_NAN,
    F32,
    bits_of,
    e2m1_code,
    float_of,
    from_e2m1,
    from_e4m3,
    round_e2m1,
    round_to,
    to_e4m3,
)
from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loops import Kernels, decoder, encoder, searcher
from ctcli.ops.pieces import Source, Work, divide
from ctcli.ops.tiles import Settings, Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MAGNITUDE, _SIGN, _EXPONENT = uint32(0x7FFFFFFF), uint32(0x80000000), uint32(0x7F800000)
_ZERO, _QUARTER = float32(0), float32(0.25)
_EIGHTH = uint8(0x20)  # the E4M3 code that stands for an empty group's scale, instead of zero


@inlined
def _scale_of(low: float32, high: float32, settings: Settings) -> tuple[float32, float32]:  # noqa: ARG001
    """Returns the effective scale, and the code of the stored one."""
    code = to_e4m3(float32(round_to(float32(high / E2M1_MAX), settings.kind) * settings.total))
    code = code if code & uint8(0x7F) else _EIGHTH
    return float32(from_e4m3(code) / settings.total), float32(code)


@inlined
def round_elements(work: Work, count: int) -> None:
    """Quotients, which are in the values, to codes and values; E2M1, also MXFP4's.

    Zero is 0, what rounds to it keeps its sign.
    """
    weights, scales, values, codes = work.weights, work.scales, work.values, work.codes
    for i in range(count):
        magnitude = float_of(bits_of(values[i]) & _MAGNITUDE)
        rounded = round_e2m1(magnitude)
        sign = bits_of(weights[i]) & _SIGN
        code = uint8(
            e2m1_code(rounded) | ((sign >> uint32(28)) if magnitude > _ZERO else uint32(0))
        )
        codes[i] = code if magnitude == magnitude else E2M1_NAN  # noqa: PLR0124
        values[i] = float_of(bits_of(float32(rounded * scales[i])) | sign)


@inlined
def read_elements(work: Work, count: int) -> None:
    """Codes to values, and squares of half the distance to the next larger magnitude."""
    for i in range(count):
        value = from_e2m1(work.codes[i])
        work.values[i] = value
        half = float32(float_of(bits_of(value) & _EXPONENT) * _QUARTER)
        half = half if half > _QUARTER else _QUARTER  # noqa: FURB136
        work.squares[i] = half * half


@inlined
def _encode(work: Work, count: int, settings: Settings) -> None:  # noqa: ARG001
    divide(work, count, F32)
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
