"""How to tell that a checkpoint is quantized already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ctcli.lazy.tensors import TensorSpec
from ctcli.models.config import quantizations, shown
from ctcli.ops.dtypes import CODES

# Last component of a tensor's name -> who writes it.
_MARKS = {
    "weight_packed": "compressed-tensors",
    "weight_scale": "compressed-tensors",
    "weight_scale_inv": "FP8 blocks",
    "weight_global_scale": "compressed-tensors",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "scale2": "NVFP4",
}
# What follows the name of a tensor of packed experts, likewise.
_EXPERTS = {"_scale_inv": "FP8 blocks", "_blocks": "MXFP4", "_weight_scale": "NVFP4"}
_PACKED = ("gate_up_proj", "down_proj")
_MARKS |= {role + mark: kind for role in _PACKED for mark, kind in _EXPERTS.items()}


def quantized_format(
    tensors: Iterable[tuple[str, TensorSpec]], config: Mapping[str, Any]
) -> str | None:
    """The name of the format that a checkpoint is quantized in; None if it is not.

    Args:
        tensors: names and specs.
        config: config.json.
    """
    for found in filter(None, quantizations(config)):
        if not isinstance(found, Mapping):
            return f"its quantization_config is {shown(found)}, and not a table"
        if not _only_transforms(found):
            return str(found.get("quant_method", "an unnamed format"))
    for name, spec in tensors:
        leaf = name.rpartition(".")[2]
        if leaf in _MARKS:
            return f"{_MARKS[leaf]} (it has {name})"
        if leaf == "blocks" and spec.dtype == "U8":
            return f"MXFP4 (it has {name})"
        if leaf in ("weight", *_PACKED) and spec.dtype in CODES:
            return f"{spec.dtype} ({name})"
    return None


def _only_transforms(config: Mapping[str, Any]) -> bool:
    """Whether such a config quantizes nothing, and is there for rotations that a server applies."""
    return bool(config.get("transform_config")) and not config.get("config_groups")
