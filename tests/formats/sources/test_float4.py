"""ModelOpt's, gpt-oss's, DeepSeek's and packed experts' weights: traps, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import Ctcli
from tests.helpers.checkpoints import tensor_hashes
from tests.helpers.quantizing import tensors_of
from tests.helpers.sources import SourceCase

Tensors = dict[str, Tensor]
UP = "model.layers.0.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts"
KNOWN = "it belongs to no quantized weight that is known"


def bytes_of(*shape: int, seed: int = 0) -> Tensor:
    """Random bytes."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def scales(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Random numbers from 1 to 2."""
    return (torch.rand(shape, generator=seeded(seed)) + 1).to(dtype)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nvfp4(rows: int = 8, columns: int = 64) -> Tensors:
    """A linear in ModelOpt's NVFP4."""
    return {
        f"{UP}.weight": bytes_of(rows, columns // 2),
        f"{UP}.weight_scale": scales(rows, columns // 16, dtype=torch.float8_e4m3fn),
        f"{UP}.weight_scale_2": scales(),
    }


def checkpoint(folder: Path, tensors: Tensors, **said: Any) -> Path:
    """A checkpoint of these tensors."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"quant_method": "modelopt", **said}
    text = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(text))
    return folder


REFUSED: dict[str, tuple[Tensors, str]] = {
    "no scale of scales": (
        {name: t for name, t in nvfp4().items() if not name.endswith("_2")},
        "it has no weight_scale_2 of one float32 number",
    ),
    "other scales": (
        {**nvfp4(), f"{UP}.weight_scale": scales(8, 5, dtype=torch.float8_e4m3fn)},
        "its scales [8, 5] are not those of its weight [8, 64]",
    ),
    "SVDQuant": (
        {**nvfp4(), f"{UP}.svdquant_lora_a": scales(4, 64)},
        "it has SVDQuant's matrices beside it, which are not read",
    ),
    "factors": (
        {**nvfp4(), f"{UP}.pre_quant_scale": scales(32)},
        "its pre_quant_scale is not one number for each column",
    ),
    "W4A8_AWQ": (
        {
            f"{UP}.weight": bytes_of(4, 64),
            f"{UP}.weight_scale": scales(8, 2),
            f"{UP}.weight_scale_2": scales(),
        },
        "it is W4A8_AWQ, whose integers are rounded to FP8 while the model runs",
    ),
    "rows of int8": (
        {f"{UP}.weight": bytes_of(8, 64).view(torch.int8), f"{UP}.weight_scale": scales(4)},
        "its scales [4] are not one for each row",
    ),
    "FP6": (
        {f"{UP}.weight": bytes_of(8, 48), f"{UP}.weight_scale": bytes_of(8, 2)},
        "its codes have six bits, and config.json does not say of which kind",
    ),
    "MXFP4": (
        {f"{UP}.weight": bytes_of(8, 32), f"{UP}.weight_scale": bytes_of(8, 3)},
        "its scales [8, 3] are not those of FP4 codes [8, 64]",
    ),
    "Gemma": (
        {
            f"{UP}.weight": bytes_of(8, 32),
            f"{UP}.weight_scale": scales(8, 1),
            f"{UP}.input_activation_scale": scales(),
        },
        "its activations are rounded while the model runs (quant_method gemma)",
    ),
    "words": (
        {f"{UP}.weight": bytes_of(8, 32).view(torch.int32), f"{UP}.weight_scale": scales(8, 1)},
        "its words hold None, of which only int4 is known",
    ),
    "old scales of a cache": ({**nvfp4(), f"{UP}.output_scale": scales()}, KNOWN),
    "gpt-oss": (
        {
            f"{EXPERTS}.down_proj_blocks": bytes_of(2, 8, 2, 16),
            f"{EXPERTS}.down_proj_scales": bytes_of(2, 8, 3),
        },
        "its blocks [2, 8, 2, 16] and scales [2, 8, 3] do not go together",
    ),
    "gpt-oss without scales": ({f"{EXPERTS}.down_proj_blocks": bytes_of(2, 8, 2, 16)}, KNOWN),
    "experts without scales": (
        {**nvfp4(), f"{EXPERTS}.down_proj": bytes_of(2, 8, 32).view(torch.float8_e4m3fn)},
        "it is F8_E4M3, and no scale that is known goes with it",
    ),
    "experts' other scales": (
        {
            f"{EXPERTS}.down_proj": bytes_of(2, 8, 32).view(torch.float8_e4m3fn),
            f"{EXPERTS}.down_proj_scale_inv": scales(3, 1, 1),
        },
        "its scales [3, 1, 1] are not those of experts [2, 8, 32]",
    ),
    "scales without experts": ({**nvfp4(), f"{EXPERTS}.down_proj_scale_inv": scales(2)}, KNOWN),
    "raw": (
        {
            f"{EXPERTS}.w13_weight": bytes_of(2, 8, 32),
            f"{EXPERTS}.w13_weight.scale": scales(2, 8, 4, dtype=torch.float8_e4m3fn),
            f"{EXPERTS}.w13_weight.scale2": scales(3),
        },
        "its codes [2, 8, 32], scales [2, 8, 4] and [3] do not go together",
    ),
    "raw and padded": (
        {
            f"{UP}": bytes_of(8, 32),
            f"{UP}.scale": scales(8, 4, dtype=torch.float8_e4m3fn),
            f"{UP}.scale2": scales(),
            f"{UP}.original_shape": torch.tensor([8, 60]),
        },
        "its original_shape is not that of its codes, [8, 64]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused(cli: Ctcli, tmp_path: Path, name: str) -> None:
    tensors, message = REFUSED[name]
    result = cli("dequantize", checkpoint(tmp_path / "src", tensors), tmp_path / "dst")
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_scales_that_are_nan_end_the_run(cli: Ctcli, tmp_path: Path, byte: int) -> None:
    mxfp4 = {f"{UP}.weight": bytes_of(8, 32), f"{UP}.weight_scale": bytes_of(8, 2)}
    for number, tensors in enumerate((nvfp4(), mxfp4)):
        tensors[f"{UP}.weight_scale"].view(torch.uint8)[:] = 0x70
        tensors[f"{UP}.weight_scale"].view(torch.uint8)[3, 1] = byte
        source = checkpoint(tmp_path / f"src{number}", tensors)
        result = cli("dequantize", source, tmp_path / f"dst{number}")
        is_finite = number == 1 and byte == 0x7F  # the exponent of 1
        assert result.returncode == (0 if is_finite else 1)
        assert is_finite or UP in result.stderr


def test_every_power_of_two_is_decoded(cli: Ctcli, tmp_path: Path) -> None:
    """From 2^-127 times a half, a subnormal float, to 2^127 times 1.5; twice that is none."""
    exponents = torch.arange(255, dtype=torch.uint8)[:, None].expand(255, 2).contiguous()
    codes = bytes_of(255, 32)
    codes[254] &= 0x33  # at most 1.5
    codes[253] &= 0x55  # at most 3
    tensors = {f"{UP}.weight": codes, f"{UP}.weight_scale": exponents}
    source = checkpoint(tmp_path / "src", tensors)
    assert cli("dequantize", source, tmp_path / "dst", "--dtype", "float32").returncode == 0
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    nibbles = torch.stack((codes & 15, codes >> 4), 2).reshape(255, 64).long()
    values = torch.where(nibbles > 7, -1.0, 1.0) * magnitudes[nibbles & 7]
    expected = values * 2.0 ** (exponents.double() - 127).repeat_interleave(32, 1)
    found = tensors_of(tmp_path / "dst")[f"{UP}.weight"]
    assert torch.equal(found.double(), expected)
    codes[254, 0] = 4
    result = cli("dequantize", checkpoint(tmp_path / "large", tensors), tmp_path / "none")
    assert (result.returncode, UP in result.stderr) == (1, True)


def test_floats_that_are_no_powers_of_two_are_no_exponents(cli: Ctcli, tmp_path: Path) -> None:
    module = "layers.0.ffn.experts.0.w1"
    codes = bytes_of(8, 32).view(torch.int8)
    good = {f"{module}.weight": codes, f"{module}.scale": 2.0 ** torch.arange(-3.0, 13).view(8, 2)}
    source = checkpoint(tmp_path / "src", good)
    assert cli("convert", source, tmp_path / "dst").returncode == 0
    found = tensors_of(tmp_path / "dst")[f"{module}.weight_scale"]
    assert found.flatten().tolist() == [124 + i for i in range(16)]
    bad = {**good, f"{module}.scale": good[f"{module}.scale"] * 1.5}
    result = cli("convert", checkpoint(tmp_path / "bad", bad), tmp_path / "none")
    assert (result.returncode, "a scale is not a power of two" in result.stderr) == (1, True)


def test_other_tensors_keep_their_bytes(cli: Ctcli, tmp_path: Path) -> None:
    kept = {
        "deepseek-v4": ("hc_head_scale", "layers.0.hc_attn_scale", "layers.0.ffn.gate.weight"),
        "gpt-oss-original": ("block.0.mlp.mlp1_bias",),
        "gpt-oss": (f"{EXPERTS}.gate_up_proj_bias", "model.layers.1.self_attn.sinks"),
    }
    for name, names in kept.items():
        case = SourceCase(name)
        assert cli("dequantize", case.checkpoint, tmp_path / name).returncode == 0
        old, new = tensor_hashes(case.checkpoint), tensor_hashes(tmp_path / name)
        assert {n: new[n] for n in names} == {n: old[n] for n in names}
        written = new.keys() - case.expected().keys()
        assert written == written & old.keys(), "every scale is used up"
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert not {"quantization_config", "expert_dtype"} & {*config}


def test_powers_of_two_are_exact_in_sixteen_bits(cli: Ctcli, tmp_path: Path) -> None:
    for name in ("gpt-oss", "modelopt-mxfp4", "mxfp8"):
        case = SourceCase(name)
        result = cli("dequantize", case.checkpoint, tmp_path / name, "--json")
        assert json.loads(result.stdout)["exact"] is True
        found = tensors_of(tmp_path / name)
        for weight, expected in case.expected().items():
            assert found[weight].dtype == torch.bfloat16
            np.testing.assert_array_equal(found[weight].float().numpy(), expected)


def test_tensors_without_a_module_are_read_like_linears(cli: Ctcli, tmp_path: Path) -> None:
    """The same codes under raw names, and as packed experts whose columns are packed."""
    case = SourceCase("modelopt-nvfp4-qwen3")
    stored, expected = tensors_of(case.checkpoint), case.expected()
    names = [f"{EXPERTS}.{expert}.up_proj" for expert in (0, 1)]
    codes, groups, totals = (
        torch.stack([stored[f"{name}.{leaf}"] for name in names])
        for leaf in ("weight", "weight_scale", "weight_scale_2")
    )
    raw = {
        f"{EXPERTS}.w3_weight": codes,
        f"{EXPERTS}.w3_weight.scale": groups,
        f"{EXPERTS}.w3_weight.scale2": totals,
        "model.up": codes[0].clone(),
        "model.up.scale": groups[0].clone(),
        "model.up.scale2": totals[0].clone(),
        "model.up.input_amax": totals[0].clone(),
        "model.up.original_shape": torch.tensor([16, 32]),
        f"{EXPERTS}.down_proj": codes.clone(),
        f"{EXPERTS}.down_proj_weight_scale": groups.clone(),
        f"{EXPERTS}.down_proj_weight_scale_2": totals.clone(),
    }
    given = checkpoint(tmp_path / "src", raw)
    result = cli("dequantize", given, tmp_path / "dst", "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    found = tensors_of(tmp_path / "dst")
    weights = np.stack([expected[f"{name}.weight"] for name in names])
    assert found.keys() == {f"{EXPERTS}.w3_weight", f"{EXPERTS}.down_proj", "model.up"}
    np.testing.assert_array_equal(found[f"{EXPERTS}.w3_weight"].numpy(), weights)
    np.testing.assert_array_equal(found[f"{EXPERTS}.down_proj"].numpy(), weights)
    np.testing.assert_array_equal(found["model.up"].numpy(), weights[0])


def test_what_a_side_file_says_of_a_cache_counts(cli: Ctcli, tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(SourceCase("modelopt-nvfp4").checkpoint, source)
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    said = json.loads((source / "hf_quant_config.json").read_text())
    said["quantization"]["kv_cache_quant_algo"] = "NVFP4"
    (source / "hf_quant_config.json").write_text(json.dumps(said))
    result = cli("convert", source, tmp_path / "dst")
    assert result.returncode == 1
    assert "its key-value cache is NVFP4, and only FP8 is known" in result.stderr
    assert cli("dequantize", source, tmp_path / "dense").returncode == 0
    assert not (tmp_path / "dense" / "hf_quant_config.json").exists()


@pytest.mark.parametrize("name", ["fp8-experts", "fbgemm"])
def test_packed_experts_are_requantized_one_by_one(cli: Ctcli, tmp_path: Path, name: str) -> None:
    case, dst = SourceCase(name), tmp_path / "dst"
    result = cli("quantize", case.checkpoint, dst, "--scheme", "W8A16", "--group-size", "8")
    assert result.returncode == 0, result.stderr
    modules = {name.rpartition(".")[0] for name in tensors_of(dst)}
    parts = ("gate_proj", "up_proj", "down_proj")
    parent = next(iter(case.expected())).rpartition(".")[0]
    assert modules >= {f"{parent}.{expert}.{part}" for expert in (0, 1) for part in parts}
    assert not any(module.endswith("experts") for module in modules)
    found = json.loads(cli("verify", dst, "--against", case.checkpoint, "--json").stdout)
    # The rest of the model is not in this case.
    assert {each["where"] for each in found["differences"]} <= {"config.json"}
    dense = tmp_path / "dense"
    assert cli("dequantize", case.checkpoint, dense).returncode == 0
    against = cli("verify", dense, "--against", case.checkpoint, "--json")
    assert {each["where"] for each in json.loads(against.stdout)["differences"]} <= {"config.json"}
    assert cli("inspect", case.checkpoint).returncode == 0


def test_gate_and_up_that_share_blocks_stay_packed(cli: Ctcli, tmp_path: Path) -> None:
    source = tmp_path / "src"
    tensors = {
        f"{EXPERTS}.gate_up_proj": bytes_of(2, 48, 32).clamp(max=0x70).view(torch.float8_e4m3fn),
        f"{EXPERTS}.gate_up_proj_scale_inv": scales(2, 2, 1),
    }
    checkpoint(source, tensors)
    sizes = {"hidden_size": 32, "moe_intermediate_size": 24, "num_experts": 2}
    (source / "config.json").write_text(json.dumps(sizes))
    assert cli("dequantize", source, tmp_path / "dense").returncode == 0
    for command in (("convert",), ("quantize", "--scheme", "W8A16")):
        result = cli(command[0], source, tmp_path / "dst", *command[1:])
        assert (result.returncode, "share" in result.stderr) == (1, True)


def test_quarks_words_are_read_in_the_one_order_that_is_known(cli: Ctcli, tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(SourceCase("quark").checkpoint, source)
    good = json.loads((source / "config.json").read_text())
    points = "model.layers.0.mlp.down_proj.weight_zero_point"
    given = good["quantization_config"]
    layers = given["layer_quant_config"]
    damages: dict[str, dict[str, Any]] = {
        "packed as 'order'": {**given, "export": {"pack_method": "order"}},
        "does not say of which kind": {
            **given,
            "layer_quant_config": {n: each for n, each in layers.items() if n != "*o_proj"},
        },
        "several patterns of layer_quant_config match it": {
            **given,
            "layer_quant_config": {**layers, "*.mlp.*": layers["*o_proj"]},
        },
    }
    for message, said in damages.items():
        (source / "config.json").write_text(json.dumps({**good, "quantization_config": said}))
        result = cli("dequantize", source, tmp_path / "dst")
        assert (result.returncode, message in result.stderr) == (1, True), message
    (source / "config.json").write_text(json.dumps(good))
    tensors = tensors_of(source)
    tensors[points][1, 2] = 1
    save_file(tensors, source / "model.safetensors")
    result = cli("dequantize", source, tmp_path / "dst")
    assert (result.returncode, "its zero points are not zero" in result.stderr) == (1, True)


def test_inspect_says_what_conversion_rounds(cli: Ctcli) -> None:
    for name, words in (
        ("modelopt-nvfp4", "reciprocals, rounded"),
        ("modelopt-mxfp4", "yes: exact"),
    ):
        shown = cli("inspect", SourceCase(name).checkpoint).stdout.splitlines()
        (line,) = (line for line in shown if line.strip().startswith("convert"))
        assert words in line
