"""Parameters behind stored tensors: packed weights count as what they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ctcli.checkpoint.value import Modules
from ctcli.formats.declared import Declaration
from ctcli.lazy.nodes import LazyTensor
from ctcli.models.config import table
from ctcli.models.modules import Module
from ctcli.ops.dtypes import CODES

# Last component of a tensor's name -> it belongs to a quantized weight, and is no parameter.
_BESIDE = (
    *("weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale", "weight_g_idx"),
    *("input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale"),
    *("weight_scale_inv", "qzeros", "scales", "g_idx", "SCB", "weight_format"),
    *("absmax", "quant_map", "nested_absmax", "nested_quant_map"),
)


@dataclass(frozen=True)
class InspectedWeight:
    """A tensor of parameters.

    Attributes:
        shape: before it was packed.
        is_quantized: whether it is stored quantized.
        is_packed: whether several elements share a stored one.
    """

    shape: tuple[int, ...]
    is_quantized: bool
    is_packed: bool = False

    @property
    def parameters(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


def weights_of(
    modules: Modules, config: Mapping[str, Any], declared: Declaration | None
) -> dict[str, InspectedWeight]:
    """Every tensor of parameters, by the name that it has, or had, unquantized.

    Scales, zero points and matrices of rotations at run time are none.

    Args:
        modules: all there are.
        config: config.json.
        declared: what it says of quantization.
    """
    found: dict[str, InspectedWeight] = {}
    for module in modules.values():
        if module.kind == "rotation":
            continue
        for leaf, tensor in module.parts.items():
            name, spec = module.tensor(leaf), tensor.spec
            blocks = f"{leaf.removesuffix('_scales')}_blocks"
            if leaf in _BESIDE or ".quant_state." in name or blocks in module.parts:
                continue
            if leaf in ("weight_packed", "qweight") or leaf.endswith("_blocks"):
                shape = _unpacked(module, leaf, config, declared)
                stem = leaf.removesuffix("_blocks") if leaf.endswith("_blocks") else "weight"
                found[module.tensor(stem)] = InspectedWeight(shape, True, True)
            elif spec.dtype == "U8" and name in modules and "absmax" in modules[name].parts:
                found[name] = InspectedWeight((2 * math.prod(spec.shape),), True, True)
            else:
                found[name] = _as_stored(spec.shape, leaf == "weight" and spec.dtype in CODES)
    return found


@lru_cache(maxsize=4096)
def _as_stored(shape: tuple[int, ...], is_quantized: bool) -> InspectedWeight:
    """A weight that is not packed: one for all that are alike, of which there may be very many."""
    return InspectedWeight(shape, is_quantized)


def _unpacked(
    module: Module[LazyTensor],
    leaf: str,
    config: Mapping[str, Any],
    declared: Declaration | None,
) -> tuple[int, ...]:
    """Shape of a packed weight as it was: [rows, columns], where the format keeps them."""
    packed = module.parts[leaf].spec
    if leaf.endswith("_blocks") and len(packed.shape) > 1:
        # MXFP4: two elements a byte, in blocks of 16 bytes
        *outer, blocks, nbytes = packed.shape
        return (*outer, 2 * blocks * nbytes)
    if leaf == "qweight":
        bits = table(config.get("quantization_config")).get("bits")
        return (packed.bits // (bits if bits in (2, 3, 4, 8) else 4),)
    if len(packed.shape) != 2:
        return packed.shape
    rows, stored = packed.shape
    group = declared.group_of(module.name) if declared else None
    if packed.dtype == "U8":
        return rows, 2 * stored
    arguments = group.scheme.weights if group else None
    scale = module.parts.get("weight_scale")
    if arguments and arguments.group_size and scale and len(scale.spec.shape) == 2:
        return rows, scale.spec.shape[1] * arguments.group_size
    return rows, stored * 32 // (arguments.num_bits if arguments else 4)
