"""The rules of Q8_0: ties, groups of zeros, huge and tiny groups."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ctcli.ops.q80 import quantize_q80
from tests.helpers.llama2c import Floats
from tests.helpers.llama2c import quantize_q80 as plain_q80


def dequantized(codes: torch.Tensor, scales: torch.Tensor, group: int) -> Floats:
    grouped = codes.numpy().reshape(-1, group).astype(np.float32)
    values: Floats = grouped * scales.numpy().reshape(-1, 1)
    return values.reshape(codes.shape)


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
    codes, scales, error = quantize_q80(torch.from_numpy(values), 4)
    plain_codes, plain_scales = plain_q80(values, 4)
    assert codes.numpy().tobytes() == plain_codes.tobytes()
    assert scales.numpy().tobytes() == plain_scales.tobytes()
    assert float(error) == np.abs(dequantized(codes, scales, 4) - values).max()
    assert codes.numpy().min() >= -127


@given(st.lists(st.integers(-126, 125), min_size=31, max_size=31))
def test_q80_rounds_ties_to_even(integers: list[int]) -> None:
    """With a largest value of 127 the scale is one, and halves are exact."""
    values = torch.tensor([[127.0, *(integer + 0.5 for integer in integers)]])
    codes, scales, _ = quantize_q80(values, 32)
    assert scales.tolist() == [[1.0]]
    assert codes.tolist() == [[127, *(round(integer + 0.5) for integer in integers)]]


@given(st.integers(-119, 127), st.sampled_from(["bfloat16", "float32", "float64"]))
def test_codes_do_not_depend_on_a_power_of_two(power: int, dtype: str) -> None:
    """As long as the scale is a normal number; float16 has too few powers for this."""
    row = torch.tensor([[1.0, -0.5, 0.3, 0.0]]).to(getattr(torch, dtype))
    codes, scales, _ = quantize_q80(row, 4)
    scaled_codes, scaled_scales, _ = quantize_q80(row * 2.0**power, 4)
    assert scaled_codes.tolist() == codes.tolist()
    assert scaled_scales.tolist() == (scales * 2.0**power).tolist()


def test_subnormals_are_clamped_rather_than_wrapped_around() -> None:
    tiny = 2.0**-149
    codes, scales, _ = quantize_q80(torch.tensor([[180 * tiny, -180 * tiny, tiny, 0]]), 4)
    assert scales.tolist() == [[tiny]]  # 180 / 127 rounds to one step
    assert codes.tolist() == [[127, -127, 1, 0]]
