"""Transposing is what numpy says it is."""

from __future__ import annotations

import numpy as np
import pytest

from ctcli.ops.transposing import transpose


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 5), (7, 2), (8, 8), (19, 33), (33, 8)])
def test_rows_become_columns(shape: tuple[int, int], dtype: type[np.floating]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    out = np.empty(shape[::-1], dtype)
    transpose(x, out)
    assert np.array_equal(out, x.T)
