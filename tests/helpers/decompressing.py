"""Checkpoints as compressed-tensors itself decompresses them, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.utils import match_named_modules
from numpy.typing import NDArray

from tests.helpers.quantizing import config_of, tensors_of


def decompressed(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of all quantized modules, by the names of the dense weights.

    compressed-tensors decides which scheme a module has. It rounds weights to the dtype of their
    scales, which are made float32 before.
    """
    config, tensors = QuantizationConfig.model_validate(config_of(folder)), tensors_of(folder)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        is_float = tensor.dtype in (torch.float16, torch.bfloat16)
        states.setdefault(module, {})[leaf] = tensor.float() if is_float else tensor
    found = {}
    for module, state in states.items():
        if "weight_scale" in state:
            scheme = _scheme_of(module, config)
            compressor = BaseCompressor.get_value_from_registry(scheme.format)
            if scheme.format == "nvfp4-pack-quantized":
                weight = _nvfp4(state, scheme)
            else:
                weight = compressor.decompress(state, scheme)["weight"]
            found[f"{module}.weight"] = weight.float().numpy()
    return found


def _nvfp4(state: dict[str, torch.Tensor], scheme: Any) -> torch.Tensor:
    """What compressed-tensors reads of NVFP4 before it rounds to bfloat16."""
    packed = state["weight_packed"]
    rows, columns = packed.shape
    weight: torch.Tensor = dequantize(
        x_q=unpack_fp4_from_uint8(packed, rows, 2 * columns, dtype=torch.float32),
        scale=state["weight_scale"].float(),
        args=scheme.weights,
        global_scale=state["weight_global_scale"],
        dtype=torch.float32,
    )
    return weight


def _scheme_of(module: str, config: QuantizationConfig) -> Any:
    """The scheme that compressed-tensors gives to a linear of that name."""
    parts = module.split(".")
    model: torch.nn.Module = torch.nn.Linear(1, 1, device="meta")
    for part in reversed(parts):
        outer = torch.nn.Module()
        outer.add_module(part, model)
        model = outer
    schemes = [
        scheme
        for scheme in config.config_groups.values()
        if any(match_named_modules(model, scheme.targets, config.ignore))
    ]
    (scheme,) = schemes
    return scheme
