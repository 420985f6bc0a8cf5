"""MXFP4 becomes NVFP4 with the same numbers, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import Ctcli
from tests.helpers.decompressing import decompressed
from tests.helpers.quantizing import config_of, tensors_of
from tests.helpers.sources import SourceCase

EXPERT = "layers.0.ffn.experts.0."


def mxfp4(folder: Path, **exponents: Tensor) -> Path:
    """Linears of DeepSeek-V4 with these biased exponents, and random codes but in group [1, 1]."""
    tensors: dict[str, Tensor] = {}
    for seed, (name, scale) in enumerate(exponents.items()):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(1, 120, (scale.shape[0], 16 * scale.shape[1]), generator=generator)
        codes[1, 16:32] = 0x80  # -0 and +0
        tensors[f"{EXPERT}{name}.weight"] = codes.to(torch.int8)
        tensors[f"{EXPERT}{name}.scale"] = scale.to(torch.uint8)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    said = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = {"model_type": "deepseek_v4", "torch_dtype": "bfloat16", "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_compressed_tensors_reads_the_numbers_of_mxfp4(cli: Ctcli, tmp_path: Path) -> None:
    case = SourceCase("modelopt-mxfp4")
    done = cli("convert", case.checkpoint, tmp_path / "dst", "--to", "nvfp4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact"] is True
    found = decompressed(tmp_path / "dst")
    for name, weight in case.expected().items():
        np.testing.assert_array_equal(found[name].view(np.uint32), weight.view(np.uint32), name)
    assert config_of(tmp_path / "dst")["format"] == "nvfp4-pack-quantized"
    assert cli("verify", tmp_path / "dst").returncode == 0  # fused sets share their global scales


def test_powers_seventeen_apart_are_the_last_that_are_exact(cli: Ctcli, tmp_path: Path) -> None:
    """The largest power of w1 is that of w3, too, which has one scale with it in a server."""
    up = torch.arange(103, 103 + 12).reshape(4, 3)
    up[1, 1] = 0  # a group of zeros
    source = mxfp4(tmp_path / "source", w1=torch.full((4, 3), 120), w3=up)
    done = cli("convert", source, tmp_path / "dst", "--to", "nvfp4")
    assert done.returncode == 0, done.stderr
    assert cli("dequantize", source, tmp_path / "dense", "--dtype", "float32").returncode == 0
    found, stored = decompressed(tmp_path / "dst"), tensors_of(tmp_path / "dst")
    for name, weight in tensors_of(tmp_path / "dense").items():
        np.testing.assert_array_equal(found[name], weight.numpy(), name)
        module = name.removesuffix(".weight")
        assert stored[f"{module}.weight_global_scale"].tolist() == [2.0 ** (8 - (120 - 127))]
    assert stored[f"{EXPERT}w3.weight_scale"].view(torch.uint8).min() == 1  # 2**-9
    further = mxfp4(tmp_path / "further", w1=torch.full((4, 3), 121), w3=up)
    done = cli("convert", further, tmp_path / "out", "--to", "nvfp4")
    assert done.returncode == 1
    assert "a scale is 2^18 times as small as the largest of its fused set" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.tensor([[255, 1, 1], [1, 1, 1]]), "NaN"),
        (torch.tensor([[5, 1, 1], [1, 1, 1]]), "too small for a global scale in float32"),
        (torch.tensor([[0, 120, 120], [120, 120, 120]]), "2^120 times as small"),
    ],
)
def test_scales_that_nvfp4_does_not_have_are_refused(
    cli: Ctcli, tmp_path: Path, scale: Tensor, message: str
) -> None:
    source = mxfp4(tmp_path / "source", w2=scale)
    done = cli("convert", source, tmp_path / "dst", "--to", "nvfp4")
    assert done.returncode == 1
    assert message in done.stderr


def test_some_weights_have_to_be_mxfp4(cli: Ctcli, tmp_path: Path) -> None:
    done = cli("convert", SourceCase("fp8-llama").checkpoint, tmp_path / "dst", "--to", "nvfp4")
    assert done.returncode == 1
    assert "none of its weights is MXFP4" in done.stderr
