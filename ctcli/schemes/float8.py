"""FP8: E4M3 elements with scales of the weight's dtype; float-quantized and naive-quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import Output, TensorSpec
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Decoded, Numerics
from ctcli.schemes.ranges import (
    find_bounds,
    granule_of,
    grouping_of,
    quantize_stored,
    scale_output,
    stored_scale,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Bits
    from ctcli.ops.float8 import Float8
    from ctcli.ops.ranges import Roundtrip

FORMATS = ("float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")


def accepts(scheme: Scheme) -> bool:
    """Whether the weights are eight-bit floats with floating-point scales."""
    weights = scheme.weights
    is_float8 = weights.type == "float" and weights.num_bits == 8 and weights.symmetric
    return is_float8 and weights.scale_dtype is None and weights.strategy in STRATEGIES


def granule(scheme: Scheme) -> tuple[int, int]:
    """A tile."""
    return granule_of(scheme.weights)


def outputs(numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
    """`weight` and `weight_scale`."""
    return {
        "weight": Output(TensorSpec("F8_E4M3", weight.shape)),
        "weight_scale": scale_output(numerics.scheme.weights, weight, numerics.dtype),
    }


def quantize(
    weight: Tensor,
    shape: tuple[int, ...],  # noqa: ARG001 (families share one signature)
    numerics: Numerics,
    whole: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize some rows. See `Family.quantize`."""
    arguments, float8 = numerics.scheme.weights, _of(numerics)
    grouping = grouping_of(arguments)
    view = grouping.view(weight)
    scale = float8.scale(find_bounds(view, numerics, whole, float8.roundtrip))
    codes, values = float8.encode(view, scale)
    found = {
        "weight": grouping.flatten(codes, *weight.shape),
        "weight_scale": stored_scale(scale, arguments).to(float8.dtype),
    }
    return found, grouping.flatten(values, *weight.shape)


def quantize_bits(
    bits: Bits,
    shape: tuple[int, ...],  # noqa: ARG001 (families share one signature)
    numerics: Numerics,
) -> tuple[dict[str, Bits], tuple[float, float]]:
    """Quantize some stored rows. See `PlainFamily.quantize_bits`."""
    from ctcli.ops.stored_weights import E4M3_MAX, e4m3

    found = quantize_stored(bits, numerics, E4M3_MAX, e4m3)
    outputs = {"weight": found.codes, "weight_scale": found.scales}
    return outputs, (found.error, found.energy)


def decode(
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],  # noqa: ARG001 (families share one signature)
    scheme: Scheme,  # noqa: ARG001
) -> Decoded:
    """Read what `quantize` wrote. See `Family.decode`."""
    import torch

    from ctcli.ops.rounding import e4m3_half_steps, from_e4m3

    codes = from_e4m3(tensors["weight"])
    scale = tensors["weight_scale"].to(torch.float32)
    return Decoded(codes, scale, half_steps=e4m3_half_steps(codes))


def roundtrip(numerics: Numerics) -> Roundtrip:
    """See `Family.roundtrip`."""
    return _of(numerics).roundtrip


def _of(numerics: Numerics) -> Float8:
    from ctcli.ops.float8 import Float8

    return Float8(numerics.torch_dtype, numerics.quotient_dtype)
