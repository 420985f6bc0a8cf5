"""Counts of stored values that no writer means, by their bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

NOT_FINITE = "values are NaN or infinite"
# Magnitudes from these bits on are infinite or NaN; E4M3 has no infinities.
_NOT_FINITE = {
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F32": 0x7F800000,
    "F64": 0x7FF0 << 48,
}


def _magnitudes(bits: Array) -> Array:
    found: Array = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return found


def count_nonfinite(bits: Array, tag: str) -> int:
    """How many values are NaN or infinite."""
    first = _NOT_FINITE.get(tag)
    return 0 if first is None else int((_magnitudes(bits) >= bits.dtype.type(first)).sum())


def scale_faults(bits: Array, tag: str) -> Iterator[tuple[str, int]]:
    """Of scales of a float dtype, or of biased exponents (U8)."""
    if tag == "U8":
        yield "exponents are 255, which stands for NaN", int((bits == 255).sum())
        return
    nonfinite, magnitudes = count_nonfinite(bits, tag), _magnitudes(bits)
    yield NOT_FINITE, nonfinite
    infinity = bits.dtype.type(_NOT_FINITE[tag])
    is_number = magnitudes < infinity if tag == "F8_E4M3" else magnitudes <= infinity
    is_negative = (bits != magnitudes) & is_number
    nonpositive = int((is_negative | (magnitudes == 0)).sum())
    yield "values are zero or negative, as no scale is", nonpositive


def count_outside(bits: Array, width: int) -> tuple[str, int]:
    """Of int8 values, those that do not fit so many bits."""
    lowest, values = -(1 << (width - 1)), bits.view(np.int8)
    count = int(((values < lowest) | (values > -lowest - 1)).sum())
    return f"values are outside {lowest}..{-lowest - 1}", count


def count_padded(words: Array, used: int) -> tuple[str, int]:
    """Of 32-bit words, those with a bit set beyond the first `used`."""
    count = int((words.astype(np.uint64) >> np.uint64(used) != 0).sum())
    return "words have padding bits set", count
