"""FP8 and FP4 checkpoints of other packages keep their numbers as compressed-tensors ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.conftest import Ctcli
from tests.helpers.decompressing import decompressed
from tests.helpers.quantizing import config_of, tensors_of
from tests.helpers.sources import SourceCase, source_cases

LINEARS = 7  # of the layer that a whole model has
# Why there is no compressed-tensors checkpoint with the same numbers.
REFUSED = {
    "fp8-presharded": "its blocks begin anew in each part of the rows",
    "modelopt-int4-awq": "no scales of inputs' columns (pre_quant_scale)",
    "modelopt-int8-smooth": "no scales of inputs' columns (pre_quant_scale)",
    "modelopt-w4a8": "no such weights with FP8 inputs",
    "modelopt-nvfp4-gpt-oss": "how experts of gpt_oss lie in one tensor is not known of NVFP4",
    "quark": "compressed-tensors' elements of six bits are E2M3",
    "gpt-oss": "vLLM and transformers load gpt-oss's MXFP4 as it is",
    "gpt-oss-original": "vLLM and transformers load gpt-oss's MXFP4 as it is",
}
OPTIONS = {"fp8-presharded": ("--presharded", "re:.*qkv_proj=4")}
CASES = [
    case
    for prefix in ("fp8", "modelopt", "mx", "quark", "fbgemm", "deepseek")
    for case in source_cases(prefix)
    if case.name not in REFUSED
]
# compressed-tensors divides by the reciprocal of the scale by which ModelOpt multiplies.
NVFP4 = ("modelopt-nvfp4", "modelopt-mixed")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compressed_tensors_reads_the_same_numbers(
    cli: Ctcli, tmp_path: Path, case: SourceCase
) -> None:
    result = cli("convert", case.checkpoint, tmp_path / "dst", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["exact"] is not case.name.startswith(NVFP4)
    found, expected = decompressed(tmp_path / "dst"), case.expected()
    for name, weight in expected.items():
        weights = found.get(name)
        if weights is None:
            weights = packed(found, name)
        if weights.shape != weight.shape:  # Llama-4's are [in, out]
            weights = np.ascontiguousarray(weights.swapaxes(1, 2))
        if case.name.startswith(NVFP4):
            np.testing.assert_allclose(weights, weight, rtol=2**-22, err_msg=name)
        else:
            np.testing.assert_array_equal(weights.view(np.uint32), weight.view(np.uint32), name)
    found_by_verify = json.loads(cli("verify", tmp_path / "dst", "--json").stdout)["differences"]
    # Some cases are a single module, and their config.json promises a whole model.
    missing = [each for each in found_by_verify if each["where"] == "config.json"]
    assert found_by_verify == missing, found_by_verify
    assert not missing or len(expected) < LINEARS


def test_quark_keeps_its_numbers_but_for_e3m2(cli: Ctcli, tmp_path: Path) -> None:
    case, attention = SourceCase("quark"), "model.layers.0.self_attn"
    expected = case.expected()

    def without(*modules: str) -> Path:
        source = shutil.copytree(case.checkpoint, tmp_path / "-".join(modules))
        left = {n: t for n, t in tensors_of(source).items() if not n.startswith(modules)}
        save_file(left, source / "model.safetensors")
        for module in modules:
            expected.pop(f"{module}.weight", None)
        return source

    source, dense = without(f"{attention}.v_proj"), tmp_path / "dense"
    done = cli("convert", source, tmp_path / "all", "--ct-version", "0.20")
    assert done.returncode == 0, done.stderr
    assert cli("dequantize", tmp_path / "all", dense, "--dtype", "float32").returncode == 0
    found = tensors_of(dense)
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name].numpy().view("u4"), weight.view("u4"), name)
    # compressed-tensors 0.19 reads all but FP6.
    source = without(f"{attention}.v_proj", f"{attention}.o_proj")
    assert cli("convert", source, tmp_path / "known").returncode == 0
    by_others = decompressed(tmp_path / "known")
    assert by_others.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(by_others[name].view("u4"), weight.view("u4"), name)


def packed(found: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """The experts' own weights as the one tensor that transformers has in their place."""
    parent, _, role = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[role]
    experts = sum(each.startswith(parent) and each.endswith(f"{parts[0]}.weight") for each in found)
    return np.stack(
        [
            np.concatenate([found[f"{parent}.{expert}.{part}.weight"] for part in parts])
            for expert in range(experts)
        ]
    )


def test_linears_of_transposed_experts_are_quantized_anew(cli: Ctcli, tmp_path: Path) -> None:
    case = SourceCase("modelopt-nvfp4-llama4-text")
    done = cli("quantize", case.checkpoint, tmp_path / "dst", "--scheme", "FP8_DYNAMIC")
    assert done.returncode == 0, done.stderr
    found = decompressed(tmp_path / "dst")
    for name, weight in case.expected().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        weights = packed(found, name).swapaxes(1, 2)
        # Half a step of E4M3, or of its subnormal numbers under the scale of a row.
        step = np.abs(weight).max(axis=1, keepdims=True) / 448 * 2**-10
        assert (np.abs(weights - weight) <= np.abs(weight) * 2**-4 + step).all(), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(cli: Ctcli, tmp_path: Path, name: str) -> None:
    given = OPTIONS.get(name, ())
    result = cli("convert", SourceCase(name).checkpoint, tmp_path / "dst", *given)
    assert result.returncode == 1
    assert REFUSED[name] in result.stderr
    # Experts in one tensor are no linears, which could be quantized anew.
    assert ("--requantize" in result.stderr) is ("gpt-oss" not in name)
    assert not (tmp_path / "dst").exists()


def test_scales_of_a_cache_get_the_names_of_compressed_tensors(cli: Ctcli, tmp_path: Path) -> None:
    source = SourceCase("modelopt-fp8").checkpoint
    assert cli("convert", source, tmp_path / "dst").returncode == 0
    before, after = tensors_of(source), tensors_of(tmp_path / "dst")
    attention = "model.layers.0.self_attn"
    for kind in "kv":
        assert f"{attention}.{kind}_proj.{kind}_scale" not in after
        scale = before[f"{attention}.{kind}_proj.{kind}_scale"]
        assert after[f"{attention}.{kind}_scale"].tolist() == [scale.item()]
    cache = config_of(tmp_path / "dst")["kv_cache_scheme"]
    assert (cache["num_bits"], cache["type"], cache["strategy"]) == (8, "float", "tensor")


def test_static_inputs_keep_their_scales(cli: Ctcli, tmp_path: Path) -> None:
    for case, suffix in (("modelopt-fp8", "input_scale"), ("modelopt-nvfp4", "input_global_scale")):
        source = SourceCase(case).checkpoint
        assert cli("convert", source, tmp_path / case).returncode == 0
        before, after = tensors_of(source), tensors_of(tmp_path / case)
        module = "model.layers.0.mlp.up_proj"
        scale = before[f"{module}.input_scale"]
        wanted = scale if suffix == "input_scale" else 1 / scale
        assert after[f"{module}.{suffix}"].tolist() == [wanted.item()]
