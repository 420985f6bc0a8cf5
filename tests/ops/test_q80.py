"""The rules of Q8_0: ties, groups of zeros, huge and tiny groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from ctcli.ops.q80 import quantize_q80
from tests.helpers.llama2c import Floats
from tests.helpers.llama2c import quantize_q80 as plain_q80


def dequantized(codes: NDArray[np.int8], scales: Floats, group: int) -> Floats:
    grouped = codes.reshape(-1, group).astype(np.float32)
    values: Floats = grouped * scales.reshape(-1, 1)
    return values.reshape(codes.shape)


def stored(values: torch.Tensor) -> NDArray[Any]:
    """A tensor's elements as unsigned integers."""
    return values.view(getattr(torch, f"uint{8 * values.element_size()}")).numpy()


@settings(deadline=None)  # the first call compiles
@given(
    npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 64])),
        elements=st.one_of(
            st.floats(-(2.0**127), 2.0**127, width=32),
            st.floats(-1, 1, width=32),
            st.floats(-(2.0**-126), 2.0**-126, width=32),
            st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 127.0, 0.5, 1.5, -2.5]),
        ),
    )
)
def test_q80_is_the_plain_rule_for_huge_and_tiny_groups(values: Floats) -> None:
    codes, scales, error = quantize_q80(values, "F32", 4)
    plain_codes, plain_scales = plain_q80(values, 4)
    assert codes.tobytes() == plain_codes.tobytes()
    assert scales.tobytes() == plain_scales.tobytes()
    assert error == np.abs(dequantized(codes, scales, 4) - values).max()
    assert codes.min() >= -127


@settings(deadline=None)
@given(st.lists(st.integers(-126, 125), min_size=31, max_size=31))
def test_q80_rounds_ties_to_even(integers: list[int]) -> None:
    """With a largest value of 127 the scale is one, and halves are exact."""
    values = np.array([[127.0, *(integer + 0.5 for integer in integers)]], np.float32)
    codes, scales, _ = quantize_q80(values, "F32", 32)
    assert scales.tolist() == [[1.0]]
    assert codes.tolist() == [[127, *(round(integer + 0.5) for integer in integers)]]


TAGS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@pytest.mark.parametrize("tag", TAGS)
def test_stored_elements_of_all_dtypes_are_the_numbers_that_they_stand_for(tag: str) -> None:
    values = torch.randn(6, 128, generator=torch.Generator().manual_seed(1)).double()
    values *= 2.0 ** torch.arange(-22, 2, 4).double().view(6, 1)  # down to subnormal float16
    values = values.to(TAGS[tag])
    codes, scales, _ = quantize_q80(stored(values), tag, 32)
    plain_codes, plain_scales = plain_q80(values.float().numpy(), 32)
    assert codes.tobytes() == plain_codes.tobytes()
    assert scales.tobytes() == plain_scales.tobytes()


@settings(deadline=None)
@given(st.integers(-119, 127), st.sampled_from(["BF16", "F32", "F64"]))
def test_codes_do_not_depend_on_a_power_of_two(power: int, tag: str) -> None:
    """As long as the scale is a normal number; float16 has too few powers for this."""
    row = torch.tensor([[1.0, -0.5, 0.3, 0.0]]).to(TAGS[tag])
    codes, scales, _ = quantize_q80(stored(row), tag, 4)
    scaled_codes, scaled_scales, _ = quantize_q80(stored(row * 2.0**power), tag, 4)
    assert scaled_codes.tolist() == codes.tolist()
    assert scaled_scales.tolist() == (scales * np.float32(2.0**power)).tolist()


def test_subnormals_are_clamped_rather_than_wrapped_around() -> None:
    tiny = 2.0**-149
    row = np.array([[180 * tiny, -180 * tiny, tiny, 0]], np.float32)
    codes, scales, _ = quantize_q80(row, "F32", 4)
    assert scales.tolist() == [[tiny]]  # 180 / 127 rounds to one step
    assert codes.tolist() == [[127, -127, 1, 0]]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_scales_tell_of_values_that_are_not_finite(value: float) -> None:
    row = np.array([[1, 2, 3, value, 1, 2, 3, 4]], np.float32)
    _, scales, _ = quantize_q80(row, "F32", 4)
    assert np.isfinite(scales).tolist() == [[False, True]]
