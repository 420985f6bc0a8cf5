"""Products with small matrices: what einsum makes of whole numbers, in every order of tiles."""

from __future__ import annotations

import numpy as np
import pytest

from ctcli.ops.hadamard import hadamard
from ctcli.ops.products import product_of


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("f", [1, 3, 4, 7, 8, 9, 12, 20, 28, 36])
@pytest.mark.parametrize("width", [1, 5, 512, 700])
def test_both_ways_are_the_product(width: int, f: int, dtype: type[np.floating]) -> None:
    generator = np.random.default_rng(f)
    x = generator.integers(-8, 8, (2, f, width)).astype(dtype)
    known = hadamard(f)
    matrices = [generator.integers(-5, 5, (f, f)).astype(np.float64)]
    if known is not None and f % 4 == 0:
        matrices.append(known.astype(np.float64) * 0.5)
    for i, matrix in enumerate(matrices):
        product = product_of(matrix, dtype)
        assert product.by_fours == (i == 1)
        expected = np.einsum("kf,bkw->bfw", matrix, x)
        out = np.full_like(x, np.nan)
        product.columns(x, out)
        assert np.array_equal(out, expected)
        replaced = x.copy()
        product.columns(replaced, replaced)
        assert np.array_equal(replaced, expected)
