"""Gains: exact products, rounded once, beside arithmetic in whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ctcli.ops.rounding import round_once

# Bits of the significand, and the exponents of the smallest step and of the first value too large.
FORMATS = {torch.bfloat16: (8, -133, 128), torch.float16: (11, -24, 16)}


def rounded(x: Fraction, dtype: torch.dtype) -> float:
    """The value of a format next to x, the even one of two."""
    precision, least, end = FORMATS[dtype]
    if not x:
        return 0.0
    exponent = math.floor(math.log2(abs(x)))  # one too large, or small, next to a power of two
    exponent -= abs(x) < Fraction(2) ** exponent
    exponent += abs(x) >= Fraction(2) ** (exponent + 1)
    step = Fraction(2) ** max(exponent - precision + 1, least)
    found = round(x / step) * step
    return math.copysign(math.inf, x) if abs(found) >= 2**end else float(found)


near_ties = st.builds(
    lambda dtype, odd, scale, away: (
        dtype,
        math.ldexp((2 * odd + 1) * (1 + away * 2.0**-52), scale),
    ),
    st.sampled_from([*FORMATS]),
    st.integers(-(2**11), 2**11),
    st.integers(-150, 126),
    st.integers(-4, 4),
)
anything = st.tuples(st.sampled_from([*FORMATS]), st.floats(-1e39, 1e39))


@given(near_ties | anything)
@example((torch.bfloat16, 1 + 2**-8 + 2**-40))
@example((torch.bfloat16, 3.3961775292304957e38))  # half a step above the largest
@example((torch.float16, math.nextafter(65520, 0)))
@example((torch.float16, 65520.0))
def test_float64_is_rounded_once(case: tuple[torch.dtype, float]) -> None:
    dtype, x = case
    found = round_once(torch.tensor([x], dtype=torch.float64), dtype)
    assert found.dtype == dtype
    assert found.item() == rounded(Fraction(x), dtype)
    assert math.copysign(1, found.item()) == math.copysign(1, x)


def test_what_is_not_finite_stays_so() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    for dtype in FORMATS:
        assert repr(round_once(x, dtype).tolist()) == "[inf, -inf, nan]"
