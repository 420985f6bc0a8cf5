"""transformers loads what becomes of quantized models, and computes what their makers' do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import Ctcli
from tests.helpers.sources import SourceCase

# The largest difference of logits, which are below 1, from those of the source as transformers
# loads it: bitsandbytes' int8 rounds inputs, too, by 1/254 of the largest; GPTQModel's kernels sum
# in another order, and logits of float16 are rounded by 2**-12.
LOADED = {
    "awq-gemm": 2**-10,
    "bnb-int8": 2**-6,
    "bnb-nf4": 0,
    "fp8-llama": 0,
    "gpt-oss": 0,
    "gptq-llama": 2**-10,
}
# Models that transformers cannot load as they are: their packages' floats stand for them. Two have
# a bound for weights, see `test_oracles`, of which float32 shows a little.
FLOATS = {
    **dict.fromkeys(
        (
            *("modelopt-fp8", "modelopt-fp8-block", "modelopt-fp8-channel", "modelopt-int8"),
            *("modelopt-mixed", "modelopt-mxfp4", "modelopt-mxfp8", "modelopt-nvfp4"),
            *("modelopt-nvfp4-gpt-oss", "modelopt-nvfp4-llama4-text", "modelopt-nvfp4-qwen3"),
            *("modelopt-w4a8", "quark"),
        ),
        0.0,
    ),
    "modelopt-int4-awq": 2**-20,
    "modelopt-int8-smooth": 2**-20,
}
# Of the models above, those with the same numbers in compressed-tensors that are also linears to
# transformers, which packs experts. It multiplies codes and scales in the model's dtype: logits of
# bfloat16, below 1, are then rounded differently by one or two steps of 2**-8.
CONVERTED = {
    **dict.fromkeys(("awq-gemm", "gptq-llama"), 0.0),
    **dict.fromkeys(
        (
            *("fp8-llama", "modelopt-fp8", "modelopt-fp8-block", "modelopt-fp8-channel"),
            *("modelopt-int8", "modelopt-mixed", "modelopt-mxfp4", "modelopt-mxfp8"),
            "modelopt-nvfp4",
        ),
        2**-7,
    ),
}


def logits(folder: Path, has_more: bool = False) -> Tensor:
    """What transformers computes from the tokens 0 to 15; it has to find all tensors of the model.

    Args:
        folder: the checkpoint.
        has_more: there may be scales of inputs and of the cache beside these.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    model, told = loaded
    if has_more:
        known = re.compile(r".*\.(input_(global_)?scale|[kv]_scale)")
        told["unexpected_keys"] = {k for k in told["unexpected_keys"] if not known.fullmatch(k)}
    assert not any(told.values()), told
    model.eval()
    with torch.inference_mode():
        found: Tensor = model(torch.arange(16)[None]).logits[0]
    return found


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    return (found.double() - wanted.double()).abs().max().item()


def made(cli: Ctcli, command: str, case: str, folder: Path) -> Path:
    done = cli(command, SourceCase(case).checkpoint, folder / command)
    assert done.returncode == 0, done.stderr
    return folder / command


@pytest.mark.parametrize("case", LOADED)
def test_floats_give_the_logits_of_the_source(cli: Ctcli, tmp_path: Path, case: str) -> None:
    found = logits(made(cli, "dequantize", case, tmp_path))
    wanted = SourceCase(case).logits()
    assert largest_difference(found, wanted) <= LOADED[case]


@pytest.mark.parametrize("case", FLOATS)
def test_floats_are_loaded_as_the_other_packages_floats(
    cli: Ctcli, tmp_path: Path, case: str
) -> None:
    dense = made(cli, "dequantize", case, tmp_path)
    others = shutil.copytree(dense, tmp_path / "others")
    expected, left = SourceCase(case).expected(), set(SourceCase(case).expected())
    for path in others.glob("*.safetensors"):
        tensors = load_file(path)
        for name in left & tensors.keys():
            tensors[name] = torch.from_numpy(expected[name]).to(tensors[name].dtype)
        left -= tensors.keys()
        save_file(tensors, path, metadata={"format": "pt"})
    assert not left
    assert largest_difference(logits(dense), logits(others)) <= FLOATS[case]


@pytest.mark.parametrize("case", CONVERTED)
def test_the_same_numbers_give_the_logits_of_the_floats(
    cli: Ctcli, tmp_path: Path, case: str
) -> None:
    wanted = logits(made(cli, "dequantize", case, tmp_path))
    converted = made(cli, "convert", case, tmp_path)
    config = json.loads((converted / "config.json").read_text())
    # With floats, neither inputs nor the cache are rounded.
    config["quantization_config"]["kv_cache_scheme"] = None
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    (converted / "config.json").write_text(json.dumps(config))
    assert largest_difference(logits(converted, has_more=True), wanted) <= CONVERTED[case]
