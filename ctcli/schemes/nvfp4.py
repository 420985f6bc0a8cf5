"""NVFP4: E2M1 elements, an E4M3 scale for each 16, and a float32 scale for the whole fused set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import Output, TensorSpec
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Decoded, Numerics
from ctcli.schemes.ranges import find_bounds, granule_of, grouping_of, stored_scale

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("nvfp4-pack-quantized",)


def accepts(scheme: Scheme) -> bool:
    """Whether the weights are four-bit floats in groups of 16 under a global scale."""
    weights = scheme.weights
    kind = (weights.type, weights.num_bits, weights.strategy, weights.group_size)
    return kind == ("float", 4, "tensor_group", 16) and weights.symmetric


def granule(scheme: Scheme) -> tuple[int, int]:
    """A row of a group."""
    return granule_of(scheme.weights)


def outputs(numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:  # noqa: ARG001
    """`weight_packed`, `weight_scale` and `weight_global_scale`."""
    rows, columns = weight.shape
    return {
        "weight_packed": Output(TensorSpec("U8", (rows, columns // 2))),
        "weight_scale": Output(TensorSpec("F8_E4M3", (rows, columns // 16))),
        "weight_global_scale": Output(TensorSpec("F32", (1,)), is_whole=True),
    }


def quantize(
    weight: Tensor,
    shape: tuple[int, ...],  # noqa: ARG001 (families share one signature)
    numerics: Numerics,
    whole: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize some rows. See `Family.quantize`."""
    from ctcli.ops.nvfp4 import Nvfp4, global_scale
    from ctcli.ops.rounding import pack_e2m1

    assert whole is not None, "the fused set's largest magnitude"
    arguments, dtype = numerics.scheme.weights, numerics.torch_dtype
    grouping = grouping_of(arguments)
    view = grouping.view(weight)
    nvfp4 = Nvfp4(dtype, global_scale(whole, dtype))
    scale = nvfp4.scale(find_bounds(view, numerics, None, nvfp4.roundtrip))
    codes, values = nvfp4.encode(view, scale)
    found = {
        "weight_packed": pack_e2m1(grouping.flatten(codes, *weight.shape)),
        "weight_scale": stored_scale(scale, arguments),
        "weight_global_scale": nvfp4.total.view(1),
    }
    return found, grouping.flatten(values, *weight.shape)


def decode(
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],  # noqa: ARG001 (families share one signature)
    scheme: Scheme,  # noqa: ARG001
) -> Decoded:
    """Read what `quantize` wrote. See `Family.decode`."""
    from ctcli.ops.rounding import e2m1_half_steps, from_e2m1, from_e4m3, unpack_e2m1

    codes = from_e2m1(unpack_e2m1(tensors["weight_packed"]))
    scale = from_e4m3(tensors["weight_scale"]) / tensors["weight_global_scale"]
    return Decoded(codes, scale, half_steps=e2m1_half_steps(codes))
