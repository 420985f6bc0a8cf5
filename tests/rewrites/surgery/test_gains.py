"""Gains: exact products, rounded once, beside arithmetic in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ctcli.errors import CtcliError
from ctcli.ops.bits import fits, from_floats
from ctcli.ops.device.rounding import round_once
from tests.helpers.checkpoints import assert_same_but_for_device
from tests.helpers.operating import run_fuse_norms
from tests.helpers.tiny_models import make, read, restore

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
    tag = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    values = np.array([x])
    assert fits(values, tag) == bool(found.isfinite())
    if found.isfinite():
        assert from_floats(values, tag).tobytes() == found.view(torch.uint8).numpy().tobytes()


def test_what_is_not_finite_stays_so() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    for dtype in FORMATS:
        assert repr(round_once(x, dtype).tolist()) == "[inf, -inf, nan]"


def test_what_is_not_finite_does_not_fit() -> None:
    for x in (math.inf, -math.inf, math.nan):
        for tag in ("BF16", "F16", "F32", "F64"):
            for dtype in (np.float32, np.float64):
                assert not fits(np.array([1, x, -1], dtype), tag)
    assert fits(np.array([]), "F32")
    largest = float(np.finfo(np.float32).max)
    assert fits(np.array([largest], np.float32), "F32")
    assert not fits(np.array([largest * (1 + 2.0**-24)]), "F32")


DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NORM, LINEAR = "model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.k_proj.weight"


def change(source: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace tensors of a checkpoint."""
    restore(source, {**read(source)[1], **tensors})


def both_ways(source: Path, folder: Path, **options: Any) -> Path:
    """Fuse norms without torch and, as on other devices, with it: the same bytes."""
    out = run_fuse_norms(source, folder / "without", **options)
    with_torch = run_fuse_norms(source, folder / "with", device="cpu:0", **options)
    assert_same_but_for_device(out, with_torch)
    return out


@pytest.mark.parametrize("dtype", [*FORMATS])
def test_products_are_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """Float32 gains that take a weight close to ties, closer than float32 can tell."""
    source = make("llama", tmp_path / "source", dtype=dtype)
    weight = read(source)[1][LINEAR]
    weight[::2] = 1 + 2.0**-7
    ties = torch.arange(weight.shape[1], dtype=torch.float64) * 2.0 ** (2 - FORMATS[dtype][0])
    gain = ((1 + 2.0 ** -FORMATS[dtype][0] + ties) / (1 + 2.0**-7)).float()
    change(source, {NORM: gain, LINEAR: weight})
    found = read(both_ways(source, tmp_path))[1][LINEAR]
    expected = [
        [rounded(Fraction(w) * Fraction(g), dtype) for w, g in zip(row, gain.tolist(), strict=True)]
        for row in weight.tolist()
    ]
    assert found.tolist() == expected
    twice = (weight.double() * gain.double()).to(dtype)
    assert (found != twice).any(), "these gains tell one rounding from two"


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("wide", [None, "float32"])
@pytest.mark.parametrize("norms", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_makes_no_difference(
    dtype: torch.dtype, norms: torch.dtype, wide: str | None, name: str, tmp_path: Path
) -> None:
    """Denormal weights and signed zeros, dtypes of all kinds, gains with and without offset."""
    source = make(name, tmp_path / "source", dtype=dtype)
    weight = read(source)[1][LINEAR]
    generator = torch.Generator().manual_seed(1)
    scales = 2.0 ** torch.randint(-140, 3, weight.shape, generator=generator).double()
    weight = (weight.double() * scales).to(dtype)
    weight[0] = -0.0
    change(source, {NORM: read(source)[1][NORM].to(norms), LINEAR: weight})
    both_ways(source, tmp_path, dtype=wide)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize(
    ("weight", "gain", "what"),
    [
        (math.nan, 1.0, "weight: 1 of its values are NaN or infinite"),
        (math.inf, 0.0, "weight: 1 of its values are NaN or infinite"),
        (1.0, math.nan, "a norm or a bias that goes into it holds NaN"),
        (60000.0, 1.5, "the result is not finite, or too large for F16"),
    ],
)
def test_what_is_not_finite_is_refused(
    weight: float, gain: float, what: str, device: str, tmp_path: Path
) -> None:
    source = make("llama", tmp_path / "source", dtype=torch.float16)
    weights, gains = read(source)[1][LINEAR], read(source)[1][NORM]
    weights[3, 5], gains[5] = weight, gain
    change(source, {NORM: gains, LINEAR: weights})
    with pytest.raises(CtcliError, match=what):
        run_fuse_norms(source, tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 0x7F81), (torch.float32, 0x7F800001)])
def test_a_signalling_nan_is_refused_as_others(
    dtype: torch.dtype, bits: int, tmp_path: Path
) -> None:
    source = make("llama", tmp_path / "source", dtype=dtype)
    gains = read(source)[1][NORM]
    gains.view(torch.int16 if gains.itemsize == 2 else torch.int32)[5] = bits
    change(source, {NORM: gains})
    with pytest.raises(CtcliError, match="a norm or a bias that goes into it holds NaN"):
        run_fuse_norms(source, tmp_path / "out")
