"""Sums for Sinkhorn's scaling, beside numpy's in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctcli.ops.bits import from_floats, to_floats
from ctcli.ops.equalizing import column_sums, row_sums

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def stored(tag: str, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A block as it is stored, one row of it zeros, and the squares of its values."""
    values = np.random.default_rng(columns).standard_t(3, (9, columns))
    values[4] = 0
    bits = from_floats(values, tag).view(f"u{SIZES[tag]}")
    return bits, to_floats(bits, tag, np.float64) ** 2


@pytest.mark.parametrize("columns", [1, 16, 45, 100])
@pytest.mark.parametrize("tag", SIZES)
def test_sums_are_numpys(tag: str, columns: int) -> None:
    bits, squares = stored(tag, columns)
    factors = np.random.default_rng(1).uniform(0.1, 9, columns)
    close: dict[str, Any] = {"rtol": 1e-14, "atol": 0}
    for given in (None, factors):
        rows = (squares * (1 if given is None else given)).sum(1)
        np.testing.assert_allclose(row_sums(bits, tag, given), rows, **close)
        filled = np.where(rows == 0, 1, rows)
        expected = (squares / filled[:, None]).sum(0)
        np.testing.assert_allclose(column_sums(bits, tag, given), expected, **close)
    # Of some columns, with the sums of whole rows.
    some, rows = slice(columns // 3, columns // 3 * 2 + 1), squares.sum(1)
    found = column_sums(np.ascontiguousarray(bits[:, some]), tag, None, rows)
    expected = (squares / np.where(rows == 0, 1, rows)[:, None]).sum(0)[some]
    np.testing.assert_allclose(found, expected, **close)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    bits, _ = stored("F32", 40)
    bits.view(np.float32)[3, 7] = value
    assert not np.isfinite(column_sums(bits, "F32", None)).all()
