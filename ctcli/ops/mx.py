"""Rounding weights to E2M1 or E4M3 with a power of two for each group.

OCP Microscaling Formats 1.0, with compressed-tensors' choice of the exponent: the group's largest
magnitude is rounded up to the next power of two if its significand is at least 1.75, else down, and
becomes 2^2 (E2M1) or 2^8 (E4M3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy import float32, int64, uint8

from ctcli.ops.elements import BF16, F16, bits_of, from_e8m0, to_bf16, to_f16
from ctcli.ops.float8 import read_elements as read_e4m3
from ctcli.ops.float8 import round_elements as round_e4m3
from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loops import Kernels, decoder, encoder, searcher
from ctcli.ops.nvfp4 import read_elements as read_e2m1
from ctcli.ops.nvfp4 import round_elements as round_e2m1
from ctcli.ops.pieces import Source, Work, divide
from ctcli.ops.tiles import Settings, Tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@inlined
def _scale_of(low: float32, high: float32, settings: Settings) -> tuple[float32, float32]:  # noqa: ARG001
    """Returns 2**exponent, and the exponent; both biased. A subnormal group (in D) gets 0."""
    if settings.kind == BF16:
        exponent, bias = (int64(to_bf16(high)) + (1 << 5)) >> 7, 127
    elif settings.kind == F16:
        exponent, bias = (int64(to_f16(high)) + (1 << 8)) >> 10, 15
    else:
        exponent, bias = (int64(bits_of(high)) + (1 << 21)) >> 23, 127
    if exponent:
        largest = 8 if settings.bits == 8 else 2
        exponent = min(max(exponent + int64(127 - bias - largest), int64(0)), int64(254))
    return from_e8m0(uint8(exponent)), float32(exponent)


@inlined
def _encode(work: Work, count: int, settings: Settings) -> None:
    divide(work, count, settings.quotient)
    if settings.bits == 8:
        round_e4m3(work, count)
    else:
        round_e2m1(work, count)


@inlined
def _decode(work: Work, count: int, settings: Settings) -> None:
    if settings.bits == 8:
        read_e4m3(work, count)
    else:
        read_e2m1(work, count)


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
