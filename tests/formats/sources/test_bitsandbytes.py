"""bitsandbytes' weights: blocks across rows, nested scales, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ctcli.errors import CtcliError
from ctcli.formats.sources.reading import read_quantized
from ctcli.lazy.nodes import COLUMNS, ROWS, Axis, Computed
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.quantizing import tensors_of
from tests.helpers.spans import in_least_spans

Tensors = dict[str, Tensor]
WEIGHT = "model.layers.0.mlp.up_proj.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def state(**said: Any) -> Tensor:
    """What bitsandbytes says of a weight, as a tensor."""
    text = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [8, 64], **said})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def four_bits(rows: int = 8, columns: int = 64, **said: Any) -> Tensors:
    """A weight of NF4 in blocks of 64; code c stands for c / 16."""
    count = rows * columns
    return {
        WEIGHT: torch.randint(0, 256, (-(-count // 2), 1), dtype=torch.uint8),
        f"{WEIGHT}.absmax": torch.rand(-(-count // 64)) + 1,
        f"{WEIGHT}.quant_map": torch.arange(16, dtype=torch.float32) / 16,
        STATE: state(shape=[rows, columns], **said),
    }


def nested(rows: int = 8, columns: int = 64) -> Tensors:
    """The same with eight scales that are quantized themselves, four and four."""
    return four_bits(rows, columns, nested_blocksize=4, nested_offset=0.5) | {
        f"{WEIGHT}.absmax": torch.arange(8, dtype=torch.uint8),
        f"{WEIGHT}.nested_absmax": torch.tensor([2.0, 4.0]),
        f"{WEIGHT}.nested_quant_map": torch.arange(256) / 256,
    }


def int8() -> Tensors:
    """A weight of bytes."""
    return {
        WEIGHT: torch.randint(-128, 128, (8, 64), dtype=torch.int8),
        WEIGHT.replace("weight", "SCB"): torch.rand(8) + 1,
        WEIGHT.replace("weight", "weight_format"): torch.tensor(0, dtype=torch.uint8),
    }


def checkpoint(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


REFUSED: dict[str, tuple[Tensors, str]] = {
    "no-state": (without(four_bits(), STATE), "it has an absmax, and no quant_state"),
    "no-json": (
        four_bits() | {STATE: torch.zeros(9, dtype=torch.uint8)},
        "its quant_state is not valid JSON",
    ),
    "vector": (
        four_bits() | {STATE: state(shape=[512])},
        "its quant_state says shape [512], which is no matrix",
    ),
    "no-blocks": (
        four_bits() | {STATE: state(blocksize=None)},
        "its quant_state says blocksize None",
    ),
    "bytes": (
        four_bits() | {STATE: state(shape=[8, 62])},
        "its weight has 256 bytes, and [8, 62] takes 248",
    ),
    "no-values": (without(four_bits(), f"{WEIGHT}.quant_map"), "it has no quant_map"),
    "few-scales": (
        four_bits() | {f"{WEIGHT}.absmax": torch.ones(7)},
        "its absmax is F32 [7], and not 8",
    ),
    "codes-as-scales": (
        four_bits() | {f"{WEIGHT}.absmax": torch.ones(8, dtype=torch.uint8)},
        "its absmax is U8, and it has no nested_absmax",
    ),
    "no-offset": (
        nested() | {STATE: state(nested_blocksize=256)},
        "its absmax is U8, and its nested_offset None",
    ),
    "no-scales": (
        without(four_bits(), f"{WEIGHT}.absmax"),
        "it is U8, and no scale that is known goes with it",
    ),
    "int8-of-floats": (
        int8() | {WEIGHT: torch.ones(8, 64)},
        "it has an SCB, and its weight is F32 [8, 64]",
    ),
    "int8-few-scales": (
        int8() | {WEIGHT.replace("weight", "SCB"): torch.ones(7)},
        "its SCB is F32 [7], and not 8 F32",
    ),
    "int8-in-tiles": (
        int8() | {WEIGHT.replace("weight", "weight_format"): torch.tensor(2, dtype=torch.uint8)},
        "its weight_format is not that of rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    tensors, message = REFUSED[name]
    source = checkpoint(tmp_path / "source", tensors)
    with pytest.raises(CtcliError) as caught:
        read_quantized(open_checkpoint(str(source)))
    assert any(message in problem for problem in caught.value.problems)


# Rows of whole blocks; rows that share blocks; a matrix with no such rows; rows that share bytes.
@pytest.mark.parametrize("shape", [(8, 128), (8, 96), (7, 96), (6, 33), (5, 21)])
def test_the_upper_nibble_comes_first_whatever_the_rows(
    cli: Ctcli, tmp_path: Path, shape: tuple[int, int]
) -> None:
    tensors = four_bits(*shape)
    result = cli("dequantize", checkpoint(tmp_path / "source", tensors), tmp_path / "dst")
    assert result.returncode == 0, result.stderr
    data, count = tensors[WEIGHT].reshape(-1), shape[0] * shape[1]
    codes = torch.stack([data // 16, data % 16], 1).reshape(-1)[:count]
    scales = tensors[f"{WEIGHT}.absmax"].repeat_interleave(64)[:count]
    expected = (codes / 16 * scales).reshape(shape).bfloat16()
    assert torch.equal(tensors_of(tmp_path / "dst")[WEIGHT], expected)


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
@pytest.mark.parametrize("shape", [(8, 64), (1, 512), (16, 32)])
def test_nested_scales_are_raised_after_they_are_multiplied(
    tmp_path: Path, shape: tuple[int, int], axis: Axis
) -> None:
    tensors = nested(*shape)
    reading = read_quantized(open_checkpoint(str(checkpoint(tmp_path / "source", tensors))), "F32")
    assert reading
    weight = reading.coded[WEIGHT].weight
    assert isinstance(weight, Computed)
    data = tensors[WEIGHT].reshape(-1)
    codes = torch.stack([data // 16, data % 16], 1).reshape(8, 64)
    scales = torch.arange(8) / 256 * torch.tensor([2.0, 4.0]).repeat_interleave(4) + 0.5
    expected = (codes / 16 * scales[:, None]).reshape(shape)
    np.testing.assert_array_equal(in_least_spans(weight.node, axis), expected.numpy())


def test_a_scale_that_is_nan_ends_the_run(cli: Ctcli, tmp_path: Path) -> None:
    for name, tensors in (("four", four_bits()), ("eight", int8())):
        leaf = f"{WEIGHT}.absmax" if name == "four" else WEIGHT.replace("weight", "SCB")
        tensors[leaf][3] = torch.nan
        source = checkpoint(tmp_path / name, tensors)
        result = cli("dequantize", source, tmp_path / f"{name}-dst")
        assert result.returncode == 1
        assert "1 of its values are NaN or infinite" in result.stderr
