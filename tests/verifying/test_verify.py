"""`ctcli verify` on sound checkpoints: whoever made them, nothing is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors import quantization as oracle
from compressed_tensors.compressors import ModelCompressor
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ctcli.schemes.presets import preset
from ctcli.schemes.tiles import tile_of
from ctcli.storage.opening import open_checkpoint
from tests.conftest import ROOT
from tests.helpers.operating import run_steps
from tests.helpers.quantizing import KNOWN_PRESETS, run_quantize, tensors_of
from tests.helpers.reference import Tiles
from tests.helpers.tiny_models import MODELS, Models, make
from tests.helpers.verifying import INDEX, edit_json, lines, run_verify

GOLDEN = ROOT / "fixtures" / "golden" / "input"


def input_scales(name: str, folder: Path) -> Path | None:
    """Scales of static inputs for the golden checkpoint, where a scheme needs them."""
    suffix = preset(name).needs_input_scale
    if suffix is None:
        return None
    modules = [name[:-7] for name in tensors_of(GOLDEN) if name.endswith("_proj.weight")]
    save_file({f"{m}.{suffix}": torch.full((1,), 0.5) for m in modules}, folder / "scales")
    return folder / "scales"


@pytest.mark.parametrize("name", KNOWN_PRESETS)
def test_every_preset_is_sound_and_its_errors_are_those_that_quantize_measured(
    name: str, tmp_path: Path
) -> None:
    report = run_quantize(GOLDEN, tmp_path / "out", name, input_scales=input_scales(name, tmp_path))
    source = open_checkpoint(str(GOLDEN))
    assert lines(run_verify(tmp_path / "out", target="transformers")) == []
    found = run_verify(tmp_path / "out", source=source, target="vllm")
    assert lines(found) == []
    measured = {module: error.relative for module, error in found.errors.items()}
    # quantize adds the same squares up in float32.
    assert measured == pytest.approx(report.errors, rel=1e-4)
    assert found.unchanged == 7


@pytest.mark.parametrize("name", ["W4A16", "W3A16", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"])
def test_ranges_that_were_searched_are_no_outliers(name: str, tmp_path: Path) -> None:
    run_quantize(GOLDEN, tmp_path / "out", name, observer="mse")
    assert lines(run_verify(tmp_path / "out", source=open_checkpoint(str(GOLDEN)))) == []


def compress(source: Path, folder: Path, name: str) -> Path:
    """Quantize with compressed-tensors alone, and save with transformers."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    groups = {"group_0": oracle.preset_name_to_scheme(name, ["Linear"])}
    config = oracle.QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], quantization_status="frozen"
    )
    oracle.apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            _calibrate(module, scheme.weights, name)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


def _calibrate(module: Any, weights: Any, name: str) -> None:
    weight = module.weight.data
    bounds = Tiles(weight.shape, tile_of(preset(name).weights)).bounds(weight.float().numpy())
    low, high = (torch.from_numpy(found).to(weight.dtype) for found in bounds)
    total = None
    if hasattr(module, "weight_global_scale"):
        # One range for all, as those of a fused set have to share it.
        total = oracle.utils.generate_gparam(torch.tensor(-0.5), torch.tensor(0.5))
        module.weight_global_scale.data.copy_(total)
    scale, zero = oracle.utils.calculate_qparams(low, high, weights, total)
    module.weight_scale.data.copy_(scale.view(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero.view(module.weight_zero_point.shape))


@pytest.mark.parametrize(
    "name",
    [
        *("W4A16", "W4A16_ASYM", "W3A16", "W8A8", "W4A8", "FP8_DYNAMIC", "FP8_BLOCK"),
        *("NVFP4A16", "MXFP4A16", "MXFP8A16"),
    ],
)
def test_what_compressed_tensors_makes_is_sound(name: str, tmp_path: Path) -> None:
    source = make(
        "llama", tmp_path / "source", hidden=256, intermediate_size=512, dtype=torch.bfloat16
    )
    made = compress(source, tmp_path / "out", name)
    found = run_verify(made, source=open_checkpoint(str(source)), target="transformers")
    assert lines(found) == []
    assert len(found.errors) == 14


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_sound_quantized_or_not(name: str, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name)
    assert lines(run_verify(model.folder)) == []
    run_quantize(model.folder, tmp_path / "out", "FP8_DYNAMIC")
    found = run_verify(tmp_path / "out", source=open_checkpoint(str(model.folder)))
    assert lines(found) == []
    assert not any("shapes" in note for note in found.notes)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_sound_and_one_that_was_untied_is_compared_with_the_embedding(
    name: str, tied: bool, tiny: Models, tmp_path: Path
) -> None:
    model = tiny(name, tied=tied)
    assert lines(run_verify(model.folder)) == []
    run_quantize(model.folder, tmp_path / "out", "FP8_DYNAMIC", targets=("lm_head",))
    found = run_verify(tmp_path / "out", source=open_checkpoint(str(model.folder)))
    assert lines(found) == []
    assert 0 < found.errors["lm_head"].relative < 0.04


def test_a_reindexed_quantized_checkpoint_equals_its_source(tmp_path: Path) -> None:
    run_quantize(GOLDEN, tmp_path / "quantized", "NVFP4A16")
    again = run_steps(tmp_path / "quantized", tmp_path / "out", {"use": "reindex"})
    found = run_verify(again, source=open_checkpoint(str(tmp_path / "quantized")))
    assert lines(found) == []
    assert (found.unchanged, found.errors) == (found.tensors, {})


def test_an_unknown_family_is_checked_but_for_its_shapes(tmp_path: Path) -> None:
    run_quantize(GOLDEN, tmp_path / "out", "W4A16")
    edit_json("config.json", lambda config: config.update(model_type="novel"))(tmp_path / "out")
    found = run_verify(tmp_path / "out")
    assert lines(found) == []
    assert found.notes == (
        "shapes against config.json: the architecture of model type 'novel' is not known",
    )
    (tmp_path / "out" / INDEX).unlink()
    assert len(lines(run_verify(tmp_path / "out"))) == 1


def test_weights_of_another_method_are_looked_at_and_its_loader_is_not_known(
    tmp_path: Path,
) -> None:
    run_quantize(GOLDEN, tmp_path / "out", "FP8_DYNAMIC")
    method = {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    edit_json("config.json", lambda config: config.update(method))(tmp_path / "out")
    found = run_verify(tmp_path / "out", target="vllm")
    assert lines(found) == []
    assert found.quantized == {"FP8, a scale for each row": 14}
    assert found.notes == ("what vllm demands of fbgemm_fp8: it is not known",)
