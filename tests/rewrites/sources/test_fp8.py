"""FP8 checkpoints as floats, as compressed-tensors, requantized; and those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import Ctcli
from tests.helpers.checkpoints import tensor_hashes
from tests.helpers.quantizing import tensors_of
from tests.helpers.sources import SourceCase

LLAMA = SourceCase("fp8-llama").checkpoint
LAYER = "model.layers.0."
Q = f"{LAYER}self_attn.q_proj."


def fp8(*shape: int, seed: int = 0) -> Tensor:
    """Random codes of E4M3."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)


def checkpoint(folder: Path, tensors: dict[str, Tensor], **said: Any) -> Path:
    """A checkpoint that says it is FP8."""
    folder.mkdir()
    config = {"quant_method": "fp8", "weight_block_size": [32, 32], **said}
    save_file(tensors, folder / "model.safetensors")
    text = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(text))
    return folder


def loaded(folder: Path, **options: Any) -> torch.nn.Module:
    """The model as transformers loads it, in bfloat16."""
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, **options
    )
    return model


def test_transformers_computes_the_same_from_what_is_dequantized_and_converted(
    cli: Ctcli, tmp_path: Path
) -> None:
    from transformers import FineGrainedFP8Config

    said = json.loads((LLAMA / "config.json").read_text())["quantization_config"]
    given = {"weight_block_size": said["weight_block_size"], "dequantize": True}
    source = loaded(LLAMA, quantization_config=FineGrainedFP8Config(**given))
    for command in ("dequantize", "convert"):
        assert cli(command, LLAMA, tmp_path / command).returncode == 0
    dense, converted = loaded(tmp_path / "dequantize"), loaded(tmp_path / "convert")
    tokens = torch.arange(16)[None]
    assert torch.equal(dense(tokens).logits, source(tokens).logits)
    # What is converted rounds its inputs to FP8, too: its weights are compared, which the first
    # tokens make floats.
    converted(tokens)
    found = converted.state_dict()
    for name, weight in dense.state_dict().items():
        # transformers rounds scales to bfloat16 (2**-9), multiplies in it, and rounds (2**-9).
        difference = (found[name].float() - weight.float()).abs()
        assert (difference <= 2**-7 * weight.float().abs()).all(), name


def test_converting_moves_bytes_and_converting_back_gives_the_source(
    cli: Ctcli, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    done = cli("convert", LLAMA, there)
    assert done.returncode == 0, done.stderr
    assert cli("verify", there).returncode == 0
    assert cli("convert", there, back, "--to", "fp8").returncode == 0
    old, new = tensor_hashes(LLAMA), tensor_hashes(there)
    assert {name.replace("weight_scale_inv", "weight_scale"): h for name, h in old.items()} == new
    assert tensor_hashes(back) == old
    said = json.loads((back / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["weight_block_size"]) == ("fp8", [32, 32])
    assert said["modules_to_not_convert"] == ["lm_head"]


def test_modules_left_alone_stay_as_stored_or_become_floats(cli: Ctcli, tmp_path: Path) -> None:
    ignored = ("--scheme", "W8A16", "--group-size", "16", "--ignore", "re:.*down_proj")
    assert cli("quantize", LLAMA, tmp_path / "kept", *ignored).returncode == 0
    done = cli("quantize", LLAMA, tmp_path / "dense", *ignored, "--rest", "dense")
    assert done.returncode == 0, done.stderr
    name = f"{LAYER}mlp.down_proj."
    source, kept = tensors_of(LLAMA), tensors_of(tmp_path / "kept")
    dense = tensors_of(tmp_path / "dense")
    assert torch.equal(
        kept[f"{name}weight"].view(torch.uint8), source[f"{name}weight"].view(torch.uint8)
    )
    assert torch.equal(kept[f"{name}weight_scale"], source[f"{name}weight_scale_inv"])
    assert dense[f"{name}weight"].dtype == torch.bfloat16
    assert f"{name}weight_scale" not in dense
    assert cli("verify", tmp_path / "kept").returncode == 0


def test_the_scheme_that_it_is_stored_in_is_a_conversion(cli: Ctcli, tmp_path: Path) -> None:
    given = ("--scheme", "FP8_BLOCK", "--block", "32x32")
    done = cli("quantize", LLAMA, tmp_path / "made", *given)
    assert "as stored" in done.stdout
    assert cli("convert", LLAMA, tmp_path / "converted").returncode == 0
    assert tensor_hashes(tmp_path / "made") == tensor_hashes(tmp_path / "converted")


def test_what_cannot_be_converted_is_refused_or_requantized(cli: Ctcli, tmp_path: Path) -> None:
    tensors = {
        f"{Q}weight": fp8(160, 64),
        f"{Q}weight_scale_inv": torch.rand(8, 2) + 0.5,
        f"{LAYER}self_attn.o_proj.weight": fp8(64, 64),
        f"{LAYER}self_attn.o_proj.weight_scale_inv": torch.rand(2, 2) + 0.5,
    }
    source = checkpoint(tmp_path / "source", tensors)
    given = ("--presharded", "re:.*q_proj=4")
    done = cli("convert", source, tmp_path / "out", *given)
    assert done.returncode == 1
    assert "its blocks begin anew in each part of the rows" in done.stderr


def test_rows_quantized_in_parts_are_read_part_by_part(cli: Ctcli, tmp_path: Path) -> None:
    """216 rows of scales stand for 212 blocks where rows are 8 parts of their own."""
    weight, scales = fp8(27136, 4), torch.rand(216, 1) + 0.5
    tensors = {f"{Q}weight": weight, f"{Q}weight_scale_inv": scales}
    source = checkpoint(tmp_path / "source", tensors, weight_block_size=[128, 128])
    done = cli("dequantize", source, tmp_path / "out", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    (found,) = tensors_of(tmp_path / "out").values()
    parts = scales.view(8, 27, 1).repeat_interleave(128, 1)[:, : 27136 // 8].reshape(-1, 1)
    assert torch.equal(found, weight.float() * parts)


BAD: dict[str, dict[str, Tensor]] = {
    "it is F8_E4M3, and no scale that is known goes with it": {f"{Q}weight": fp8(64, 64)},
    "it belongs to no quantized weight that is known": {
        f"{Q}weight": torch.ones(64, 64),
        f"{Q}weight_scale_inv": torch.ones(2, 2),
    },
    "its weight_scale_inv is I32, which is no scale": {
        f"{Q}weight": fp8(64, 64),
        f"{Q}weight_scale_inv": torch.ones(2, 2, dtype=torch.int32),
    },
    "its scales [3, 3] are not those of blocks of its weight [64, 64]": {
        f"{Q}weight": fp8(64, 64),
        f"{Q}weight_scale_inv": torch.ones(3, 3),
    },
    "whose rows may be 4 or 8 parts: --presharded PATTERN=C tells dequantize, convert and verify": {
        f"{Q}weight": fp8(160, 64),
        f"{Q}weight_scale_inv": torch.ones(8, 2),
    },
    "its weight is F8_E5M2, which no tool is known to write": {
        f"{Q}weight": fp8(64, 64).float().to(torch.float8_e5m2),
        f"{Q}weight_scale_inv": torch.ones(2, 2),
    },
}


@pytest.mark.parametrize("words", BAD)
def test_weights_that_contradict_themselves_are_named(
    words: str, cli: Ctcli, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "source", BAD[words])
    done = cli("dequantize", source, tmp_path / "out")
    assert done.returncode == 1
    assert words in done.stderr
    assert Q.rstrip(".") in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["code", "scale"])
def test_a_nan_code_or_scale_is_refused(place: str, cli: Ctcli, tmp_path: Path) -> None:
    weight, scale = fp8(64, 64), torch.ones(2, 2)
    if place == "code":
        weight.view(torch.uint8)[40, 7] = 0x7F
    else:
        scale[1, 0] = torch.nan
    source = checkpoint(tmp_path / "s", {f"{Q}weight": weight, f"{Q}weight_scale_inv": scale})
    done = cli("dequantize", source, tmp_path / "out")
    assert done.returncode == 1
    assert f"{Q.rstrip('.')}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_other_tensors_keep_dtype_and_bytes(cli: Ctcli, tmp_path: Path) -> None:
    """Not every name that ends in scale is one, and F32 stays F32."""
    others = {
        f"{LAYER}hc_attn_scale": torch.rand(3),
        f"{LAYER}mlp.gate.e_score_correction_bias": torch.rand(8),
        f"{LAYER}input_layernorm.weight": torch.rand(64).half(),
    }
    tensors = {f"{Q}weight": fp8(64, 64), f"{Q}weight_scale_inv": torch.ones(2, 2), **others}
    source = checkpoint(tmp_path / "source", tensors)
    assert cli("dequantize", source, tmp_path / "out").returncode == 0
    made = tensors_of(tmp_path / "out")
    for name, tensor in others.items():
        assert torch.equal(made[name], tensor)
        assert made[name].dtype == tensor.dtype


def test_nested_quantization_configs_and_side_files_go(cli: Ctcli, tmp_path: Path) -> None:
    source = checkpoint(
        tmp_path / "source",
        {f"{Q}weight": fp8(64, 64), f"{Q}weight_scale_inv": torch.ones(2, 2)},
    )
    config = json.loads((source / "config.json").read_text())
    nested = {"model_type": "x", "text_config": {**config, "dtype": "float16"}}
    (source / "config.json").write_text(json.dumps(nested))
    (source / "hf_quant_config.json").write_text("{}")
    assert cli("dequantize", source, tmp_path / "out").returncode == 0
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in json.dumps(made)
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    assert tensors_of(tmp_path / "out")[f"{Q}weight"].dtype == torch.float16


@pytest.mark.parametrize("command", [("dequantize",), ("convert",), ("quantize", "NVFP4A16")])
def test_results_are_verified_against_the_quantized_source(
    command: tuple[str, ...], cli: Ctcli, tmp_path: Path
) -> None:
    name, *scheme = command
    given = ("--scheme", *scheme) if scheme else ()
    done = cli(name, LLAMA, tmp_path / "made", *given)
    assert done.returncode == 0, done.stderr
    done = cli("verify", tmp_path / "made", "--against", LLAMA, "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert not found["not_checked"]
    assert (len(found["errors"]) == 7) == (name != "convert")
    # And the other way round: the source is another form of what was made.
    done = cli("verify", LLAMA, "--against", tmp_path / "made")
    assert done.returncode == 0, done.stdout


def test_verify_counts_scales_and_weights_that_no_writer_means(cli: Ctcli, tmp_path: Path) -> None:
    scales = torch.tensor([[1.0, -1.0], [torch.nan, 1.0]])
    tensors = {f"{Q}weight": fp8(64, 64), f"{Q}weight_scale_inv": scales}
    done = cli("verify", checkpoint(tmp_path / "source", tensors))
    assert done.returncode == 3
    assert f"{Q}weight: 1024 of its values are NaN or infinite." in done.stdout
    assert f"{Q}weight: 1 of its scales are negative." in done.stdout


def test_newer_spelling_of_config_leaves_out_what_is_null(cli: Ctcli, tmp_path: Path) -> None:
    said = {}
    for release in ("0.19", "0.20"):
        done = cli("convert", LLAMA, tmp_path / release, "--ct-version", release)
        assert done.returncode == 0, done.stderr
        config = json.loads((tmp_path / release / "config.json").read_text())
        said[release] = config["quantization_config"]
    old, new = (said[release].pop("config_groups") for release in said)
    assert (said["0.19"].pop("version"), said["0.20"].pop("version")) == ("0.19.0", "0.20.1")
    assert said["0.19"] == said["0.20"]
    for name, group in old.items():
        weights = {k: v for k, v in group["weights"].items() if v is not None and v != {}}
        assert new[name]["weights"] == {**weights, "group_size": None}
        assert "observer_kwargs" in group["weights"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("W4A16", "--group-size", "16", "--ignore", "re:.*down_proj"), ("mlp.down_proj.",)),
        (("FP8",), ("mlp.down_proj.", "self_attn.q_proj.")),
    ],
)
def test_scales_of_static_inputs_stay_with_what_is_kept(
    given: tuple[str, ...], kept: tuple[str, ...], cli: Ctcli, tmp_path: Path
) -> None:
    source = SourceCase("modelopt-fp8").checkpoint
    done = cli("quantize", source, tmp_path / "made", "--scheme", *given)
    assert done.returncode == 0, done.stderr
    before, made = tensors_of(source), tensors_of(tmp_path / "made")
    for module in kept:
        scale = made[f"{LAYER}{module}input_scale"]
        assert torch.equal(scale.view(-1), before[f"{LAYER}{module}input_scale"].view(-1))
    assert cli("verify", tmp_path / "made").returncode == 0


def test_scales_of_static_inputs_go_where_the_scheme_has_none(cli: Ctcli, tmp_path: Path) -> None:
    source = SourceCase("modelopt-fp8").checkpoint
    given = (
        "--type",
        "float",
        "--bits",
        "8",
        "--strategy",
        "tensor",
        "--format",
        "float-quantized",
    )
    done = cli("quantize", source, tmp_path / "made", *given)
    assert done.returncode == 0, done.stderr
    assert "as stored" in done.stdout
    assert not [name for name in tensors_of(tmp_path / "made") if name.endswith("input_scale")]
    assert cli("verify", tmp_path / "made").returncode == 0
