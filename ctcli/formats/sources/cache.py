"""Scales of a quantized key-value cache, which serve no weight.

ModelOpt writes `self_attn.k_proj.k_scale` and `self_attn.v_proj.v_scale`, compressed-tensors
`self_attn.k_scale` and `self_attn.v_scale`, of one number each. vLLM reads both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.config import table

CACHE_SCALES = ("k_scale", "v_scale", "q_scale")
_OF_MODULES = re.compile(r"(?P<parent>.*)\.(?P<kind>[kvq])_proj\.(?P=kind)_scale")


def cache_scales(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The scales of the cache among all tensors, by name."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] in CACHE_SCALES and math.prod(tensor.spec.shape) == 1
    }


def as_compressed(name: str, tensor: LazyTensor) -> tuple[str, LazyTensor]:
    """A scale under the name and in the shape [1] that compressed-tensors gives it."""
    if match := _OF_MODULES.fullmatch(name):
        name = f"{match['parent']}.{match['kind']}_scale"
    if isinstance(tensor, Stored):
        tensor = Stored(TensorSpec(tensor.spec.dtype, (1,)), tensor.file, tensor.start)
    return name, tensor


def cache_problem(said: Mapping[str, Any]) -> str:
    """Why a cache cannot be declared as compressed-tensors does; empty: it can.

    Args:
        said: what the tool that quantized says, in config.json or a file of its own.
    """
    algorithm, scheme = said.get("kv_cache_quant_algo"), table(said.get("kv_cache_scheme"))
    kind = (scheme.get("num_bits", 8), scheme.get("type", "float"))
    if algorithm not in (None, "FP8") or kind != (8, "float"):
        name = algorithm or f"{kind[0]} bits of type {kind[1]}"
        return f"its key-value cache is {name}, and only FP8 is known"
    return ""
