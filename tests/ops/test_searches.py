"""Searches for the best part of a range: what they leave out is not better."""

from __future__ import annotations

import numpy as np
import pytest

from ctcli.ops.backend import body
from ctcli.ops.quantized import LEAST_SQUARES, Rounding
from ctcli.ops.searches import AT_ONCE

WIDTHS = (16, 30, 32, 100, 128, 1000, 1024, 1500)
ROUNDINGS = {
    "INT4": Rounding("integers", "BF16", False, (1, None), 4, search=LEAST_SQUARES),
    "INT4, from zero points": Rounding(
        "integers", "BF16", False, (1, None), 4, symmetric=False, search=LEAST_SQUARES
    ),
    "INT3, quotients of BF16": Rounding(
        "integers", "BF16", True, (1, None), 3, symmetric=False, search=LEAST_SQUARES
    ),
    "INT8": Rounding("integers", "F16", False, (1, None), 8, search=LEAST_SQUARES),
    "FP8": Rounding("float8", "BF16", False, (1, None), 8, search=LEAST_SQUARES),
    "MXFP4": Rounding("mx", "F32", False, (1, None), 4, search=LEAST_SQUARES),
    "NVFP4": Rounding("nvfp4", "BF16", False, (1, None), 4, search=LEAST_SQUARES, total=9.0),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ROUNDINGS)
def test_no_part_that_is_left_out_has_a_smaller_error(name: str, width: int) -> None:
    rounding, random = ROUNDINGS[name], np.random.default_rng(width)
    rows = random.standard_t(4, (300, width)).astype(np.float32)
    rows[::3] = np.abs(rows[::3])  # ranges with one end
    rows[1::7, ::2] *= np.float32(8)
    rows = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # as BF16 has them
    compiled = body("cpu")
    low, high = rows.min(1), rows.max(1)
    if rounding.spans_zero:
        high = np.abs(rows).max(1)
        low = -high
    ranges = np.stack((np.minimum(low, 0), np.maximum(high, 0)))
    errors = compiled.errors(rows, "F32", rounding, ranges)
    parts = np.array(LEAST_SQUARES.parts, np.float32)
    best = ranges * parts[errors.argmin(0)]
    found = compiled.quantize(rows, "F32", rounding, None)
    expected = compiled.quantize(rows, "F32", rounding, best)
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(found.codes, expected.codes)
    if width >= 1000 and name not in ("INT8", "FP8"):
        assert errors.argmin(0).max() >= AT_ONCE, "the parts that may be left out matter"
