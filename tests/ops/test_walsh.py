"""The fast Walsh-Hadamard transform is Sylvester's matrix, compiled or not."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ctcli.ops.hadamard import sylvester
from ctcli.ops.walsh import RowTransform, transform_columns, transform_rows


@pytest.mark.parametrize("n", [2**k for k in range(13)])
def test_rows_are_multiplied_by_sylvesters_matrix(n: int) -> None:
    """Of small whole numbers: every sum is exact."""
    x = np.random.default_rng(n).integers(-8, 8, (5, n)).astype(np.float32)
    signs = np.random.default_rng(1).choice([-1.0, 2.0], n).astype(np.float32)
    out = np.empty_like(x)
    transform_rows(x, out, RowTransform(signs, np.array([[1, n]]), signs[::-1].copy()))
    expected = (x * signs) @ sylvester(n).astype(np.float32) * signs[::-1]
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("after", [1, 3, 16])
@pytest.mark.parametrize("m", [1, 2, 4, 8, 16, 64, 128])
def test_columns_are_multiplied_too(m: int, after: int, columns: int) -> None:
    generator = np.random.default_rng(m)
    w = generator.integers(-8, 8, (4, m, after * columns)).astype(np.float64)
    first = generator.integers(1, 4, 2 * m * after).astype(np.float64)
    last = generator.integers(1, 4, 2 * m * after).astype(np.float64)
    cells = w.reshape(2, 2, m, after, columns)
    scaled = cells * first.reshape(2, m, after, 1)
    expected = np.einsum("mk,bckae->bcmae", sylvester(m), scaled) * last.reshape(2, m, after, 1)
    for width in (7, 16, 4096):
        out = np.empty_like(w)
        transform_columns(w, out, first, last, columns, np.empty(m * width))
        assert np.array_equal(out, expected.reshape(w.shape))
    none = np.empty(0)
    expected = np.einsum("mk,bckae->bcmae", sylvester(m), cells)
    transform_columns(w, w, none, none, columns, np.empty(m * 16))
    assert np.array_equal(w, expected.reshape(w.shape))


PROGRAM = """
import hashlib
import numpy as np
from ctcli.ops.draws import Draws
from ctcli.ops.transforms import make_rotation
for size in (64, 96):
    rotation = make_rotation("random-hadamard", size, Draws(1))
    x = np.random.RandomState(0).standard_normal((3, size)).astype(np.float32)
    for result in (rotation.apply(x), rotation.inverse.apply_left(x.T)):
        print(hashlib.sha256(result.tobytes()).hexdigest())
"""


def test_it_is_the_same_without_a_compiler() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NUMBA_DISABLE_JIT": flag},
        ).stdout
        for flag in "01"
    ]
    assert found[0] == found[1]
    assert len(found[0].split()) == 4
