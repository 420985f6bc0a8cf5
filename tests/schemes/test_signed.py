"""Scales of either sign: the numbers of a second implementation, and what readers make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ctcli.errors import CtcliError
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.schemes import format_of
from ctcli.schemes.arguments import QuantizationArgs
from ctcli.schemes.family import Numerics
from tests.conftest import Ctcli
from tests.helpers import reference
from tests.helpers.decompressing import decompressed
from tests.helpers.operating import run_equalize
from tests.helpers.quantizing import run_quantize, tensors_of
from tests.helpers.reference import F32, Arguments, Tiles
from tests.helpers.tiny_models import logits, make, read
from tests.schemes.test_schemes import TORCH, assert_equal, for_reference, numerics, quantize, some

PACKED, BYTES = "pack-quantized", "int-quantized"
SCHEMES = [
    (some("int", 4, "group", 32), PACKED),
    (some("int", 3, "group", 16), PACKED),
    (some("int", 2, "group", 32), PACKED),
    (some("int", 8, "channel"), BYTES),
    (some("int", 4, "tensor"), PACKED),
    (some("int", 5, "block", (5, 16)), BYTES),
]
MODES = st.tuples(st.sampled_from(("BF16", "F16", "F32")), st.sampled_from(("float32", "weight")))


def drawn(data: st.DataObject, dtype: str) -> F32:
    """Weights with rows of zeros, of one sign, and with two extremes of equal size."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weight = rng.standard_t(3, (35, 64)) / 64
    weight[2, :32] = 0
    weight[4], weight[5] = np.abs(weight[4]), -np.abs(weight[5])
    weight[6, :2] = 3, -3
    weight[7, :2] = -3, 3
    return reference.rounded(weight, dtype)


def referred(how: Numerics, signed: bool) -> Arguments:
    return replace(for_reference(how), signed=signed)


@pytest.mark.parametrize(("weights", "layout"), SCHEMES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_the_extreme_gets_the_lowest_code(
    weights: QuantizationArgs, layout: str, data: st.DataObject
) -> None:
    dtype, compute = data.draw(MODES)
    how = numerics(weights, layout, dtype, compute, "signed")
    weight = drawn(data, dtype)
    expected = reference.quantize(weight, dtype, referred(how, signed=True))
    for together in (35, 20):
        assert_equal(*quantize(weight, how, together), expected)
    assert_equal(*quantize(weight, how, 35, execution=TORCH), expected)


@pytest.mark.parametrize(("weights", "layout"), SCHEMES)
@pytest.mark.parametrize("observer", ["signed", "pnorm"])
def test_columns_at_a_time_give_the_same(
    observer: str, weights: QuantizationArgs, layout: str
) -> None:
    """Where ranges of whole rows, or of all of a weight, are found before."""
    values = np.random.default_rng(7).standard_t(3, (5, 1088)) / 64
    weight, how = (
        reference.rounded(values, "F16"),
        numerics(weights, layout, "F16", "float32", observer),
    )
    by_rows, _ = quantize(weight, how, 5)
    by_columns, _ = quantize(weight, how, 544, axis=1)
    assert by_rows.keys() == by_columns.keys()
    assert all(tensor.equal(by_columns[name]) for name, tensor in by_rows.items())


@pytest.mark.parametrize(("weights", "layout"), SCHEMES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_pnorm_finds_the_scale_with_the_least_fourth_powers(
    weights: QuantizationArgs, layout: str, data: st.DataObject
) -> None:
    dtype, compute = data.draw(MODES)
    how = numerics(weights, layout, dtype, compute, "pnorm")
    weight = drawn(data, dtype)
    least = 0.52 if weights.num_bits < 4 else 0.7
    parts = np.linspace(1.08, least, 8)
    parts = np.concatenate([parts, -parts]).astype(np.float32)
    search = format_of(how.scheme).search(how)
    assert search is not None
    np.testing.assert_array_equal(np.array(search.parts, np.float32), parts)
    plain = referred(how, signed=False)
    tried = [reference.quantize(weight, dtype, plain, None, part) for part in parts]

    def errors(values: F32) -> NDArray[np.float64]:
        fourth = (values.astype(np.float64) - weight) ** 4
        return Tiles(weight.shape, plain.tile).sums(fourth)

    possible = np.stack([errors(each.values) for each in tried])
    outputs, values = quantize(weight, how, 20)
    # Each fourth power has a few roundings to float32, and so has each sum.
    slack = 1 + (weight.size + 12) * 2.0**-23
    assert (errors(values) <= possible.min(0) * slack).all()
    scales = np.stack([each.outputs["weight_scale"].array.reshape(-1) for each in tried])
    found = outputs["weight_scale"].reshape(-1).view(torch.uint8).numpy().view(scales.dtype)
    same = (scales == found).reshape(possible.shape)
    assert same.any(0).all(), "a scale that is not among those tried"
    chosen = parts[np.where(same, possible, np.inf).argmin(0)]
    assert_equal(outputs, values, reference.quantize(weight, dtype, plain, None, chosen))


@pytest.mark.parametrize("observer", ["signed", "pnorm"])
def test_readers_take_negative_scales(observer: str, ctcli: Ctcli, tmp_path: Path) -> None:
    """transformers, compressed-tensors, and ctcli's own readers compute the same."""
    source = run_equalize(make("llama", tmp_path / "source", dtype=torch.bfloat16), tmp_path / "s")
    out = tmp_path / "out"
    run_quantize(source, out, "W4A16", group_size=32, observer=observer)
    scales = [tensor for name, tensor in tensors_of(out).items() if name.endswith("_scale")]
    negative = sum(int((scale < 0).sum()) for scale in scales)
    assert 0.3 < negative / sum(scale.numel() for scale in scales) < 0.7
    for command in ("dequantize", "convert"):
        done = ctcli(command, out, tmp_path / command)
        assert done.returncode == 0, done.stderr
    converted = tensors_of(tmp_path / "convert")
    assert all(tensor.equal(converted[name]) for name, tensor in tensors_of(out).items())
    dense, values = read(tmp_path / "dequantize")[1], decompressed(out)
    for name, value in values.items():
        assert dense[name].equal(torch.from_numpy(value).bfloat16())
    kinds: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    folders = (out, tmp_path / "dequantize")
    loaded, plain = (AutoModelForCausalLM.from_pretrained(each, **kinds) for each in folders)
    assert logits(loaded).equal(logits(plain))
    for against in ((), ("--against", source, "--max-error", "0.2")):
        done = ctcli("verify", out, *against, "--target", "vllm")
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("W4A16_ASYM", {"group_size": 32}),
        ("W4A8", {"group_size": 32}),
        ("W8A8", {}),
        ("FP8_DYNAMIC", {}),
    ],
)
def test_negative_scales_are_a_fault_elsewhere(
    scheme: str, options: dict[str, Any], ctcli: Ctcli, tmp_path: Path
) -> None:
    source = make("llama", tmp_path / "source", dtype=torch.bfloat16)
    out = tmp_path / "out"
    run_quantize(source, out, scheme, **options)
    tensors = tensors_of(out)
    for each in out.glob("*.safetensors*"):
        each.unlink()
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    tensors[name].view(-1)[3] *= -1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    done = ctcli("verify", out)
    assert done.returncode == 3
    assert f"{name}: 1 of its values are zero or negative" in done.stdout


def test_zero_is_a_fault_of_signed_scales_too(ctcli: Ctcli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = make("llama", tmp_path / "source", dtype=torch.bfloat16)
    run_quantize(source, out, "W4A16", group_size=32, observer="signed")
    tensors = tensors_of(out)
    for each in out.glob("*.safetensors*"):
        each.unlink()
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    tensors[name].view(-1)[:2] = torch.tensor([0.0, -0.0])
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    done = ctcli("verify", out)
    assert done.returncode == 3
    assert f"{name}: 2 of its values are zero" in done.stdout


@pytest.mark.parametrize("observer", ["signed", "pnorm"])
@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("W4A16_ASYM", "asymmetric weights have a zero point"),
        ("W4A8", "kernels for quantized activations divide by the largest scale"),
        ("W4AFP8", "kernels for quantized activations divide by the largest scale"),
        ("W8A8", "kernels for quantized activations divide by the largest scale"),
        ("FP8_DYNAMIC", "for integers only"),
        ("NVFP4A16", "for integers only"),
        ("MXFP4A16", "for integers only"),
    ],
)
def test_other_schemes_refuse_it_with_the_reason(observer: Any, scheme: str, reason: str) -> None:
    with pytest.raises(CtcliError, match=reason) as caught:
        QuantizeOptions(scheme=("re:.*mlp.*=W4A16", scheme), observer=observer)
    assert caught.value.problems[0].startswith(f"{scheme}: --observer {observer}: ")
    assert len(caught.value.problems) == 1
