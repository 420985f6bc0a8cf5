"""Checkpoints that other packages quantized are sound, and what is broken in them is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctcli.storage.opening import open_checkpoint
from tests.helpers.sources import SourceCase, source_cases
from tests.helpers.verifying import copy_of, line, run_verify

# Which readers of today do not take as they are: pack-quantized of old releases with words that are
# packed another way, or an order of the columns.
UNREAD = {
    "ct-0.17.1": ("weight_packed: its shape is", "weight_g_idx: it is extra"),
    "ct-0.18.0": ("weight_g_idx: it is extra",),
}
# What verifying has to be told.
OPTIONS: dict[str, dict[str, Any]] = {
    "fp8-presharded": {"presharded": ("re:.*qkv_proj=4",)},
}
NAN = "are NaN or infinite"
NEGATIVE = "scales are negative"
# What is written over the first bytes of the first tensor of a name, and what is said then.
DAMAGE = {
    "fp8-llama": ("weight_scale_inv", "0000c07f", NAN),
    "fp8-e8m0": ("q_proj.weight_scale_inv", "ff", NAN),
    "fp8-experts": ("gate_up_proj", "7f", NAN),
    "fp8-tensor": ("q_proj.weight_scale_inv", "000080bf", NEGATIVE),
    "fbgemm": ("weight_scale", "0000807f", NAN),
    "mxfp8": ("k_proj.weight_scale", "ff", NAN),
    "deepseek-v4": ("w1.scale", "ff", NAN),
    "gpt-oss": ("gate_up_proj_scales", "ff", NAN),
    "awq-gemm": ("scales", "007e", NAN),
    "awq-gemv-64": ("scales", "00bc", NEGATIVE),
    "gptq-llama": ("scales", "007c", NAN),
    "gptq-v2-order": ("g_idx", "63000000", "g_idx names groups that it has no scales for"),
    "autoround-gptq": ("scales", "00bc", NEGATIVE),
    "bnb-nf4": ("nested_absmax", "0000c07f", NAN),
    "bnb-fp4": ("q_proj.weight.absmax", "0000c07f", NAN),
    "bnb-int8": ("SCB", "0000c07f", NAN),
    "modelopt-nvfp4": ("weight_scale", "7f", NAN),
    "modelopt-mixed": ("weight_scale_2", "0000c07f", NAN),
    "modelopt-int4-awq": ("pre_quant_scale", "0000c07f", NAN),
    "quark": ("q_proj.weight_scale", "c07f", NAN),
    "kimi-k2": ("weight_scale", "c07f", NAN),
}
# Without which a weight cannot be read, and what is said then.
MISSING = {
    "fp8-llama": ("weight_scale_inv", "no scale that is known goes with it"),
    "fp8-experts": ("gate_up_proj_scale_inv", "no scale that is known goes with it"),
    "awq-gemm": ("scales", "it has a qweight, and no scales"),
    "gptq-llama": ("qzeros", "it has a qweight, and no qzeros"),
    "bnb-nf4": ("nested_absmax", "it has no nested_absmax"),
    "bnb-int8": ("SCB", "no scale that is known goes with it"),
    "modelopt-nvfp4": ("weight_scale_2", "it has no weight_scale_2 of one float32 number"),
    "gpt-oss": ("gate_up_proj_scales", "it belongs to no quantized weight that is known"),
    "deepseek-v4": ("w1.scale", "no scale that is known goes with it"),
    "quark": ("q_proj.weight_scale", "no scale that is known goes with it"),
}


def found(folder: Path, **options: Any) -> list[str]:
    """What is wrong with tensors: config.json of most cases promises a whole model."""
    findings = run_verify(folder, **options).findings
    return [line(each) for each in findings if each.where != "config.json"]


def edited(case: str, suffix: str, content: bytes | None, folder: Path) -> tuple[Path, str]:
    """A copy of a case in which a tensor begins with other bytes, or is missing; its name."""
    damaged = copy_of(SourceCase(case).checkpoint, folder)
    for path in sorted(damaged.glob("*.safetensors")):
        tensors = load_file(path)
        named = (name for name in sorted(tensors) if f".{name}".endswith(f".{suffix}"))
        if name := next(named, None):
            if content is None:
                del tensors[name]
            else:
                tensors[name].reshape(-1).view(torch.uint8)[: len(content)] = torch.tensor(
                    [*content], dtype=torch.uint8
                )
            save_file(tensors, path, metadata={"format": "pt"})
            return damaged, name
    raise AssertionError(f"{case} has no {suffix}")


@pytest.mark.parametrize("case", source_cases(), ids=lambda case: case.name)
def test_what_other_packages_wrote_is_sound(case: SourceCase) -> None:
    for each in found(case.checkpoint, **OPTIONS.get(case.name, {})):
        assert any(known in each for known in UNREAD.get(case.name, ())), each


@pytest.mark.parametrize("case", DAMAGE)
def test_values_that_no_writer_means_are_found(case: str, tmp_path: Path) -> None:
    suffix, content, message = DAMAGE[case]
    folder, name = edited(case, suffix, bytes.fromhex(content), tmp_path)
    lines = found(folder)
    module = name.removesuffix(f".{suffix.rpartition('.')[2]}")
    assert [each for each in lines if message in each and module.split(".weight")[0] in each], lines


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_found(case: str, tmp_path: Path) -> None:
    suffix, message = MISSING[case]
    folder, _ = edited(case, suffix, None, tmp_path)
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    assert any(message in each for each in found(folder)), found(folder)


def test_rows_quantized_in_parts_are_verified_and_compared(tmp_path: Path) -> None:
    case, options = SourceCase("fp8-presharded"), OPTIONS["fp8-presharded"]
    untold = found(case.checkpoint)
    assert any("--presharded PATTERN=C tells dequantize, convert and verify" in u for u in untold)
    source = open_checkpoint(str(case.checkpoint))
    (error,) = run_verify(case.checkpoint, source, **options).errors.values()
    assert error.rms == 0
    damaged, _ = edited(case.name, "weight_scale_inv", bytes.fromhex("0000c07f"), tmp_path)
    assert any(NAN in each for each in found(damaged, **options))
