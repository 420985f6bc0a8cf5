"""Stored values that no writer means, by their bits: what is wrong, and with how many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctcli.ops import comparing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

NOT_FINITE = "values are NaN or infinite"


def scale_faults(bits: Array, tag: str, signed: bool = False) -> Iterator[tuple[str, int]]:
    """Of scales of a float dtype, which may be `signed`, or of biased exponents (U8)."""
    if tag == "U8":
        yield "exponents are 255, which stands for NaN", int((bits == 255).sum())
        return
    yield NOT_FINITE, comparing.count_nonfinite(bits, tag)
    if signed:
        yield "values are zero, as no scale is", comparing.count_zeros(bits)
        return
    nonpositive = comparing.count_nonpositive(bits, tag)
    yield "values are zero or negative, as no scale is", nonpositive


def code_faults(bits: Array, width: int) -> tuple[str, int]:
    """Of int8 values, those that do not fit so many bits."""
    lowest = -(1 << (width - 1))
    count = comparing.count_outside(bits.view(np.int8), lowest, -lowest - 1)
    return f"values are outside {lowest}..{-lowest - 1}", count


def padding_faults(words: Array, used: int) -> tuple[str, int]:
    """Of 32-bit words, those with a bit set beyond the first `used`."""
    return "words have padding bits set", comparing.count_padded(words, used)
