"""Counts and errors of stored values, beside plain arithmetic in Python and numpy."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ctcli.ops.bits import from_floats, to_floats
from ctcli.ops.comparing import (
    count_different,
    count_nonfinite,
    count_nonpositive,
    count_outside,
    count_padded,
    errors_of,
    rounding_errors,
)

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SUM = 1e-13  # of a few thousand squares in float64


def every_value(tag: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """All bits there are of a dtype, and torch's values of them."""
    width = 8 * DTYPES[tag].itemsize
    bits = np.arange(1 << width).astype(f"u{width // 8}")
    return bits, torch.from_numpy(bits).view(DTYPES[tag]).float().numpy()


@pytest.mark.parametrize("tag", DTYPES)
def test_all_bits_of_small_floats_are_counted(tag: str) -> None:
    bits, values = every_value(tag)
    assert count_nonfinite(bits, tag) == (~np.isfinite(values)).sum()
    assert count_nonpositive(bits, tag) == (values <= 0).sum()


@pytest.mark.parametrize(("tag", "dtype"), [("F32", np.float32), ("F64", np.float64)])
def test_large_floats_are_counted(tag: str, dtype: type[np.floating]) -> None:
    values = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -np.nan, 1e30, 1e-40], dtype)
    bits = np.tile(values, 999).view(f"u{values.itemsize}")
    assert count_nonfinite(bits, tag) == 4 * 999
    assert count_nonfinite(bits.reshape(999, 10)[:, :5], tag) == 999
    assert count_nonpositive(bits, tag) == 4 * 999


def test_others_are_finite() -> None:
    assert count_nonfinite(np.full(9, 255, np.uint8), "F8_E8M0") == 0
    assert count_nonfinite(np.full(9, -1, np.int64).view(np.uint64), "I64") == 0
    assert count_nonfinite(np.empty(0, np.uint16), "BF16") == 0


def test_integers_are_counted() -> None:
    x = np.arange(-128, 128).astype(np.int8)
    assert count_outside(x, -8, 7) == 240
    assert count_outside(x, -128, 127) == 0
    assert count_outside(x[:0], 0, 0) == 0
    words = np.array([0, 1 << 12, 1 << 31, (1 << 12) - 1], np.uint32)
    assert [count_padded(words, used) for used in (12, 13, 31, 32)] == [2, 1, 1, 0]
    assert count_different(words, words[::-1].copy()) == 4
    assert count_different(words, words.copy()) == 0


def test_errors_of_some_values() -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((37, 300)).astype(np.float32)
    values = expected + generator.normal(0, 0.01, (37, 300)).astype(np.float32)
    errors = errors_of(values, expected)
    difference = np.subtract(values, expected).astype(np.float64)
    assert errors.count == 37 * 300
    assert errors.error == pytest.approx(float((difference**2).sum()), rel=SUM)
    assert errors.energy == pytest.approx(float((expected.astype(np.float64) ** 2).sum()), rel=SUM)
    assert errors.largest == np.abs(difference).max()
    assert (errors.excess, errors.row, errors.column) == (0.0, 0, 0)


def test_errors_that_are_not_finite() -> None:
    ones = np.ones((2, 20), np.float32)
    values = ones.copy()
    values[1, 3] = np.nan
    errors = errors_of(values, ones)
    assert math.isnan(errors.error)
    assert math.isnan(errors.largest)
    assert errors.excess == 0.0
    values[1, 3] = np.inf
    assert errors_of(values, ones).largest == math.inf
    same = errors_of(ones, ones)
    assert (same.error, same.largest, same.excess) == (0.0, 0.0, 0.0)


def half_step(x: float, tag: str) -> float:
    """Half the distance of a value to the next larger magnitude."""
    mantissa, smallest = {"BF16": (7, -126), "F16": (10, -14), "F32": (23, -126)}[tag]
    exponent = max(math.frexp(x)[1] - 1, smallest) if x else smallest
    return 2.0 ** (exponent - mantissa - 1)


@pytest.mark.parametrize("tag", ["BF16", "F16", "F32"])
def test_rounding_leaves_half_a_step_at_most(tag: str) -> None:
    generator = np.random.default_rng(3)
    exponents = generator.integers(-24, 3, (4, 2100))
    exact = generator.standard_normal((4, 2100)) * 2.0**exponents
    exact[0, :5] = 0.0
    stored = from_floats(exact.copy(), tag)
    errors, nonfinite = rounding_errors(stored, tag, exact)
    values = to_floats(stored, tag, np.float64)
    ratios = [
        math.fsum((v - e) ** 2 for v, e in zip(row, wanted, strict=True))
        / max(math.fsum(half_step(v, tag) ** 2 for v in row), 1e-30)
        for row, wanted in zip(values.tolist(), exact.tolist(), strict=True)
    ]
    assert nonfinite == 0
    assert errors.excess == pytest.approx(math.sqrt(max(ratios)), rel=SUM)
    assert errors.excess < 1
    assert errors.row == int(np.argmax(ratios))
    assert errors.largest == np.abs(values - exact).max()
    broken = values.copy()
    broken[2, 7:10] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        kept = torch.from_numpy(broken).to(
            {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[tag]
        )
    bits = kept.view(torch.uint8).numpy().view(stored.dtype)
    assert rounding_errors(bits, tag, exact)[1] == 3


def test_a_zero_in_place_of_a_value_is_no_rounding() -> None:
    errors, _ = rounding_errors(np.zeros((1, 64), np.uint16), "BF16", np.full((1, 64), 1e-3))
    assert errors.excess > 1e10


PROGRAM = """
import warnings
import numpy as np
from ctcli.ops.comparing import count_nonfinite, errors_of, rounding_errors
warnings.simplefilter("ignore")
bits = np.random.RandomState(0).randint(0, 0x7FFF, (3, 40)).astype(np.uint16)
print(count_nonfinite(bits, "F16"), count_nonfinite(bits, "BF16"))
exact = np.linspace(-1, 1, 120).reshape(3, 40)
print(rounding_errors(bits & 0x3FFF, "F16", exact))
print(errors_of(exact.astype(np.float32), exact[::-1].astype(np.float32)))
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
