"""Edits of blocks: the numbers of numpy's own arithmetic, rounded once; torch's bytes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctcli.ops.bits import fits, from_floats, to_floats
from ctcli.ops.centring import Centring
from ctcli.ops.draws import Draws
from ctcli.ops.edits import edited, projected
from ctcli.ops.transforms import make_rotation

TAGS = ("BF16", "F16", "F32", "F64")
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def stored(tag: str, rows: int, columns: int, seed: int = 0) -> NDArray[Any]:
    """Values of all magnitudes down to subnormal ones, both zeros, as they are stored."""
    generator = np.random.default_rng(seed)
    exponents = generator.integers(-30 if tag == "F16" else -160, 2, (rows, columns))
    values = generator.standard_normal((rows, columns)) * 2.0**exponents
    values[:, :2] = 0.0, -0.0
    return from_floats(values, tag).view(f"u{SIZES[tag]}")


def plain(
    bits: NDArray[Any], tag: str, target: str, gain: NDArray[Any] | None, **how: bool
) -> tuple[bytes, bool]:
    """The same in several passes of numpy."""
    x = to_floats(bits, tag, np.float32 if how.get("in_float32") else np.float64)
    with np.errstate(all="ignore"):
        if gain is not None:
            factors = gain.astype(x.dtype)
            x = x / factors if how.get("divides") else x * factors
        is_finite = fits(x, target)
        return from_floats(x, target).tobytes(), is_finite


@pytest.mark.parametrize("in_float32", [False, True])
@pytest.mark.parametrize("tag", TAGS)
def test_rows_are_multiplied_after_columns(tag: str, in_float32: bool) -> None:
    bits = stored(tag, 7, 4100)
    generator = np.random.default_rng(2)
    gain, by_row = generator.uniform(0.5, 2, 4100), generator.uniform(0.5, 2, 7)
    how: dict[str, Any] = {"gain": gain, "by_row": by_row, "in_float32": in_float32}
    found, is_finite = edited(bits, tag, tag, **how)
    x = to_floats(bits, tag, np.float32 if in_float32 else np.float64)
    expected = x * gain.astype(x.dtype) * by_row.astype(x.dtype)[:, None]
    assert is_finite
    assert found.tobytes() == from_floats(expected, tag).tobytes()
    elsewhere, _ = edited(bits, tag, tag, device="cpu:0", **how)
    assert elsewhere.tobytes() == found.tobytes()


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("in_float32", [False, True])
@pytest.mark.parametrize("target", TAGS)
@pytest.mark.parametrize("tag", TAGS)
def test_an_edit_is_what_numpy_and_torch_make_of_it(
    tag: str, target: str, in_float32: bool, divides: bool
) -> None:
    bits = stored(tag, 5, 4100)  # rows go through in pieces of 4096
    generator = np.random.default_rng(1)
    gain = generator.uniform(0.5, 2, 4100) * generator.choice([-1, 1], 4100)
    gain = to_floats(from_floats(gain, "F16"), "F16", np.float64)
    how: dict[str, Any] = {"in_float32": in_float32, "divides": divides}
    found, is_finite = edited(bits, tag, target, gain=gain, **how)
    assert (found.tobytes(), is_finite) == plain(bits, tag, target, gain, **how)
    assert found.dtype == f"u{SIZES[target]}"
    elsewhere, is_finite = edited(bits, tag, target, gain=gain, device="cpu:0", **how)
    assert (elsewhere.tobytes(), is_finite) == (found.tobytes(), True)
    some, _ = edited(bits[2:3], tag, target, gain=gain, **how)
    assert np.array_equal(some, found[2:3])


@pytest.mark.parametrize("target", TAGS)
@pytest.mark.parametrize("tag", TAGS)
def test_without_a_gain_only_the_dtype_changes(tag: str, target: str) -> None:
    bits = stored(tag, 3, 33)
    found, is_finite = edited(bits, tag, target)
    assert (found.tobytes(), is_finite) == plain(bits, tag, target, None)
    if tag == target:
        assert np.array_equal(found, bits)


@pytest.mark.parametrize("in_float32", [False, True])
@pytest.mark.parametrize("target", TAGS)
def test_what_is_not_finite_is_seen(target: str, in_float32: bool) -> None:
    values = np.ones((2, 40), np.float32)
    huge = np.full(40, 2.0**127)
    for device in ("cpu", "cpu:0"):
        how: dict[str, Any] = {"in_float32": in_float32, "device": device}
        assert edited(values, "F32", target, **how)[1]
        for bad in (np.inf, -np.inf, np.nan):
            broken = values.copy()
            broken[1, 39] = bad
            assert not edited(broken, "F32", target, **how)[1]
        too_large = edited(values * 4, "F32", target, gain=huge, **how)[1]
        assert too_large == (target == "F64" and not in_float32)
    assert edited(np.empty((0, 3), np.uint16), "BF16", "F32")[1]


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 100, 4096, 5000])
@pytest.mark.parametrize("tag", TAGS)
def test_projections_are_sums_in_float64(tag: str, columns: int) -> None:
    bits = stored(tag, 6, columns + 2)[:, 2:]
    vector = np.random.default_rng(2).standard_normal(columns)
    bias = np.arange(6.0)
    found = projected(bits, tag, vector, bias)
    values = to_floats(np.ascontiguousarray(bits), tag, np.float64)
    for row in range(6):
        products = values[row] * vector
        bound = columns * 2.0**-53 * (math.fsum(np.abs(products)) + row)
        assert abs(found[row] - math.fsum([*products, bias[row]])) <= bound
        assert projected(bits[row : row + 1], tag, vector)[0] + bias[row] == found[row]
    elsewhere = projected(np.ascontiguousarray(bits), tag, vector, bias, "cpu:0")
    np.testing.assert_allclose(elsewhere, found, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 17, 300])
def test_means_are_subtracted_row_by_row_and_column_by_column(
    size: int, dtype: type[np.floating]
) -> None:
    x = np.random.default_rng(size).standard_normal((7, size)).astype(dtype) + dtype(3)
    expected = x - x.astype(np.float64).mean(1, keepdims=True)
    centring = Centring(size)
    # Values of up to 8, rounded once more to the dtype.
    bound = 8 * float(np.finfo(dtype).eps) + 1e-14
    rows, columns = centring.apply(x), centring.apply_left(np.ascontiguousarray(x.T))
    assert rows.dtype == columns.dtype == dtype
    assert np.abs(rows - expected).max() <= bound
    assert np.abs(columns.T - expected).max() <= bound
    for i in range(7):
        assert np.array_equal(centring.apply(x[i : i + 1]), rows[i : i + 1])
        assert np.array_equal(centring.apply_left(x[i : i + 1].T), columns[:, i : i + 1])
    assert centring.apply(x, out=x) is x
    assert np.array_equal(x, rows)


PROGRAM = """
import hashlib
import warnings
import numpy as np
from ctcli.ops.draws import Draws
from ctcli.ops.edits import edited, projected
from ctcli.ops.transforms import make_rotation
warnings.simplefilter("ignore")  # numpy's, about arithmetic of single numbers that wraps around
bits = np.random.RandomState(0).randint(0, 0x7000, (2, 40)).astype(np.uint16)
gain = np.linspace(0.5, 1.5, 40)
for tag in ("BF16", "F16"):
    for target in ("BF16", "F16", "F32", "F64"):
        for in_float32 in (False, True):
            found, _ = edited(bits, tag, target, gain=gain, in_float32=in_float32)
            print(hashlib.sha256(found.tobytes()).hexdigest())
print(projected(bits, "F16", gain).tolist())
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


@pytest.mark.parametrize("in_float32", [True, False])
@pytest.mark.parametrize("tag", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("order", "repeats"), [(64, 3), (8192, 1)])
def test_a_transform_in_the_same_pass_gives_the_same_bytes(
    order: int, repeats: int, tag: str, in_float32: bool
) -> None:
    generator = np.random.default_rng(order)
    values = generator.standard_normal((5, order * repeats))
    bits, gain = from_floats(values, tag), generator.uniform(0.5, 2, order * repeats)
    rotation = make_rotation("random-hadamard", order, Draws(1)).repeated(repeats)
    between, dtype = ("F32", "f4") if in_float32 else ("F64", "f8")
    transform = rotation.of_rows(dtype)
    assert transform, "it is one"
    at_once, is_finite = edited(
        bits, tag, tag, gain=gain, transform=transform, in_float32=in_float32
    )
    multiplied, _ = edited(bits, tag, between, gain=gain, in_float32=in_float32)
    turned: NDArray[Any] = rotation.apply(multiplied.view(dtype))
    expected, _ = edited(turned, between, tag, in_float32=in_float32)
    assert is_finite
    np.testing.assert_array_equal(at_once, expected)
