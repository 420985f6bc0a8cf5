"""Stored floats as numpy arrays of their bits: to numbers, and back with one rounding.

For what does not need torch, which takes a second to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctcli.ops.dtypes import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # Elements as they are stored, taken for unsigned integers of their size.
    Bits = NDArray[np.unsignedinteger]
    Floats = NDArray[np.floating[Any]]


def to_floats(bits: Bits, tag: str, dtype: type[np.floating[Any]]) -> Floats:
    """Numbers stored in a dtype (BF16, F16, F32, F64), in a new array of float32 or float64."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        if tag != "BF16":
            return bits.view(f"f{bits.itemsize}").astype(dtype)
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32).astype(dtype, copy=False)


def fits(values: Floats, tag: str) -> bool:
    """Whether all values are finite, and stay so when they are rounded to a dtype."""
    # NaN is both the least and the largest, and in no order with anything.
    least, largest = float(values.min(initial=0)), float(values.max(initial=0))
    limit = DTYPES[tag].overflow
    return -limit < least and largest < limit


def from_floats(values: Floats, tag: str) -> Bits:
    """Round values that fit to a dtype, to nearest, ties to even. Overwrites them."""
    if tag != "BF16":
        narrow = values.astype(f"f{DTYPES[tag].nbytes}")
        return narrow.view(f"u{narrow.itemsize}")
    bits = (_rounded_to_odd(values) if values.dtype == np.float64 else values).view(np.uint32)
    last = bits >> 16
    last &= 1
    last += 0x7FFF
    bits += last
    bits >>= 16
    return bits.astype(np.uint16)


def _rounded_to_odd(values: Floats) -> Floats:
    """Float64 as float32 that rounds further as float64 does; see `ops.rounding.round_once`."""
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    is_inexact = back != values
    is_away = np.abs(back, out=back) > np.abs(values, out=values)
    bits = nearest.view(np.uint32)
    bits -= is_away
    bits |= is_inexact
    return nearest
