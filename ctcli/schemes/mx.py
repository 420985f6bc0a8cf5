"""MXFP4 and MXFP8: E2M1 or E4M3 elements with a power of two for each 32.

The powers are stored as biased exponents (E8M0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import Output, TensorSpec
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Decoded, Numerics
from ctcli.schemes.ranges import find_bounds, granule_of, grouping_of, stored_scale

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("mxfp4-pack-quantized", "mxfp8-quantized")


def accepts(scheme: Scheme) -> bool:
    """Whether the weights are floats in groups of 32 with exponents for scales."""
    weights = scheme.weights
    kind = (weights.type, weights.strategy, weights.group_size, weights.scale_dtype)
    return kind == ("float", "group", 32, "torch.uint8") and weights.symmetric


def granule(scheme: Scheme) -> tuple[int, int]:
    """A row of a group."""
    return granule_of(scheme.weights)


def outputs(numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
    """`weight_packed` or `weight`, and `weight_scale`."""
    rows, columns = weight.shape
    scale = Output(TensorSpec("U8", (rows, columns // 32)))
    if numerics.scheme.weights.num_bits == 8:
        return {"weight": Output(TensorSpec("F8_E4M3", weight.shape)), "weight_scale": scale}
    packed = TensorSpec("U8", (rows, columns // 2))
    return {"weight_packed": Output(packed), "weight_scale": scale}


def quantize(
    weight: Tensor,
    shape: tuple[int, ...],  # noqa: ARG001 (families share one signature)
    numerics: Numerics,
    whole: Tensor | None,  # noqa: ARG001
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize some rows. See `Family.quantize`."""
    import torch

    from ctcli.ops.mx import Microscaling
    from ctcli.ops.rounding import pack_e2m1

    arguments = numerics.scheme.weights
    grouping = grouping_of(arguments)
    view = grouping.view(weight)
    mx = Microscaling(arguments.num_bits, numerics.torch_dtype, numerics.quotient_dtype)
    exponents = mx.exponents(find_bounds(view, numerics, None, mx.roundtrip))
    codes, values = mx.encode(view, exponents)
    codes = grouping.flatten(codes, *weight.shape)
    found = {"weight_scale": stored_scale(exponents, arguments).to(torch.uint8)}
    if mx.bits == 8:
        found["weight"] = codes
    else:
        found["weight_packed"] = pack_e2m1(codes)
    return found, grouping.flatten(values, *weight.shape)


def decode(
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],  # noqa: ARG001 (families share one signature)
    scheme: Scheme,
) -> Decoded:
    """Read what `quantize` wrote. See `Family.decode`."""
    import torch

    from ctcli.ops.rounding import (
        e2m1_half_steps,
        e4m3_half_steps,
        from_e2m1,
        from_e4m3,
        pow2,
        unpack_e2m1,
    )

    scale = pow2(tensors["weight_scale"].to(torch.int32))
    if scheme.weights.num_bits == 8:
        codes = from_e4m3(tensors["weight"])
        return Decoded(codes, scale, half_steps=e4m3_half_steps(codes))
    codes = from_e2m1(unpack_e2m1(tensors["weight_packed"]))
    return Decoded(codes, scale, half_steps=e2m1_half_steps(codes))
