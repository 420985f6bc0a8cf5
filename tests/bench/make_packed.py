"""Write a quantized checkpoint as other tools do: random codes of a model's shapes.

`python -m tests.bench.make_packed METHOD FOLDER MB`; a layer is a shard of its own, of 110 MB with
four bits and of 220 MB with FP8. Codes are random, so that nothing about them is easier than in a
real one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

_HIDDEN, _INTERMEDIATE, _GROUP, _BLOCK = 4096, 14336, 128, 128
_LINEARS = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj"), (_HIDDEN, _HIDDEN)),
    **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (_HIDDEN // 4, _HIDDEN)),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (_INTERMEDIATE, _HIDDEN)),
    "mlp.down_proj": (_HIDDEN, _INTERMEDIATE),
}


@dataclass(frozen=True)
class Method:
    """How a tool stores weights.

    Attributes:
        config: what config.json has to say of it.
        tensors: of a weight [rows, columns], by suffix, from random numbers.
    """

    config: Mapping[str, Any]
    tensors: Callable[[Generator, int, int], dict[str, Tensor]]


def _awq(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
    groups = columns // _GROUP
    return {
        "qweight": _words(generator, columns, rows // 8),
        "qzeros": _words(generator, groups, rows // 8),
        "scales": _scales(generator, groups, rows).half(),
    }


def _gptq(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
    """Symmetric: zero points are 8, stored less one."""
    groups = columns // _GROUP
    return {
        "g_idx": torch.arange(columns, dtype=torch.int32) // _GROUP,
        "qweight": _words(generator, columns // 8, rows),
        "qzeros": torch.full((groups, rows // 8), 0x77777777, dtype=torch.int32),
        "scales": _scales(generator, groups, rows).half(),
    }


def _fp8_blocks(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
    scales = _scales(generator, rows // _BLOCK, columns // _BLOCK)
    return {"weight": _e4m3(generator, rows, columns), "weight_scale_inv": scales}


def _fp8_rows(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
    weight = _e4m3(generator, rows, columns)
    return {"weight": weight, "weight_scale": _scales(generator, rows, 1)}


def _fp8_tensor(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
    one = torch.tensor(0.01)
    weight = _e4m3(generator, rows, columns)
    return {"weight": weight, "weight_scale_inv": one, "activation_scale": one.clone()}


def _nvfp4(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "weight": _bytes(generator, rows, columns // 2),
        "weight_scale": _scales(generator, rows, columns // 16, 100).to(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(2.0**-12),
        "input_scale": torch.tensor(0.01),
    }


def _words(generator: Generator, rows: int, columns: int) -> Tensor:
    low, high = -(2**31), 2**31
    return torch.randint(low, high, (rows, columns), generator=generator).to(torch.int32)


def _bytes(generator: Generator, rows: int, columns: int) -> Tensor:
    return torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)


def _e4m3(generator: Generator, rows: int, columns: int) -> Tensor:
    """All codes but NaN."""
    codes = _bytes(generator, rows, columns)
    return torch.where(codes & 0x7F == 0x7F, codes - 1, codes).view(torch.float8_e4m3fn)


def _scales(generator: Generator, rows: int, columns: int, largest: float = 0.01) -> Tensor:
    return torch.rand(rows, columns, generator=generator) * largest + largest / 10


_FOUR = {"bits": 4, "group_size": _GROUP}
_FP8 = {"quant_method": "fp8", "fmt": "e4m3"}
METHODS = {
    "awq": Method(
        {**_FOUR, "quant_method": "awq", "version": "gemm", "zero_point": True},
        _awq,
    ),
    "gptq": Method(
        {
            **_FOUR,
            "quant_method": "gptq",
            "desc_act": False,
            "sym": True,
            "checkpoint_format": "gptq",
        },
        _gptq,
    ),
    "fp8-blocks": Method(
        {**_FP8, "activation_scheme": "dynamic", "weight_block_size": [_BLOCK, _BLOCK]},
        _fp8_blocks,
    ),
    "fp8-rows": Method({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, _fp8_rows),
    "fp8-tensor": Method(
        {**_FP8, "activation_scheme": "static", "weight_block_size": None}, _fp8_tensor
    ),
    "nvfp4": Method({"quant_method": "modelopt", "quant_algo": "NVFP4"}, _nvfp4),
}


def main() -> None:
    method, folder, megabytes = METHODS[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    written = layer = 0
    while written < megabytes * 10**6:
        tensors = {
            f"model.layers.{layer}.{leaf}.{suffix}": tensor
            for leaf, shape in _LINEARS.items()
            for suffix, tensor in method.tensors(generator, *shape).items()
        }
        layer += 1
        shard = f"model-{layer:05d}.safetensors"
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        written += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "num_hidden_layers": layer,
        "torch_dtype": "float16" if "bits" in method.config else "bfloat16",
        "quantization_config": method.config,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
