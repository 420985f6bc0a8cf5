"""Integers of 2 to 8 bits: int-quantized (int8 each) and pack-quantized (a dense bit stream)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
    from ctcli.ops.integers import Integers
    from ctcli.ops.ranges import Roundtrip

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")


def accepts(scheme: Scheme) -> bool:
    """Whether the weights are integers."""
    return scheme.weights.type == "int" and scheme.weights.strategy in STRATEGIES


def granule(scheme: Scheme) -> tuple[int, int]:
    """A tile, and as much as fills whole words of packed elements and zero points."""
    height, width = granule_of(scheme.weights)
    packed = 32 // math.gcd(32, scheme.weights.num_bits)
    if _packs_zero_points(scheme):
        height = math.lcm(height, packed)
    if scheme.format == "pack-quantized":
        width = math.lcm(width, packed)
    return height, width


def outputs(numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
    """`weight` or `weight_packed` and `weight_shape`; `weight_scale`; `weight_zero_point`."""
    scheme, (rows, columns) = numerics.scheme, weight.shape
    bits = scheme.weights.num_bits
    scale = scale_output(scheme.weights, weight, numerics.dtype)
    found = {"weight_scale": scale}
    if scheme.format == "pack-quantized":
        packed = TensorSpec("I32", (rows, _words(columns, bits)))
        found["weight_packed"] = Output(packed)
        found["weight_shape"] = Output(TensorSpec("I64", (2,)), is_whole=True)
    else:
        found["weight"] = Output(TensorSpec("I8", weight.shape))
    if _packs_zero_points(scheme):
        words = (_words(rows, bits), scale.spec.shape[1])
        found["weight_zero_point"] = Output(TensorSpec("I32", words))
    elif not scheme.weights.symmetric:
        found["weight_zero_point"] = replace(scale, spec=TensorSpec("I8", scale.spec.shape))
    return found


def quantize(
    weight: Tensor, shape: tuple[int, ...], numerics: Numerics, whole: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize some rows. See `Family.quantize`."""
    import torch

    scheme, grouping = numerics.scheme, grouping_of(numerics.scheme.weights)
    integers = _of(numerics)
    view = grouping.view(weight)
    bounds = find_bounds(view, numerics, whole, integers.roundtrip)
    scale, zero = integers.parameters(bounds)
    codes, values = integers.encode(view, scale, zero)
    flat = grouping.flatten(codes.to(torch.int8), *weight.shape)
    found = {"weight_scale": stored_scale(scale, scheme.weights).to(integers.dtype)}
    if scheme.format == "pack-quantized":
        found["weight_packed"] = _packed(flat, integers.bits)
        found["weight_shape"] = torch.tensor(shape)
    else:
        found["weight"] = flat
    if zero is not None:
        stored = stored_scale(zero, scheme.weights).to(torch.int8)
        if _packs_zero_points(scheme):
            stored = _packed(stored.T.contiguous(), integers.bits).T.contiguous()
        found["weight_zero_point"] = stored
    return found, grouping.flatten(values, *weight.shape)


def quantize_bits(
    bits: Bits, shape: tuple[int, ...], numerics: Numerics
) -> tuple[dict[str, Bits], tuple[float, float]]:
    """Quantize some stored rows. See `PlainFamily.quantize_bits`."""
    import numpy as np

    from ctcli.ops.packing import offset_binary, pack_words
    from ctcli.ops.stored_weights import integers

    width = numerics.scheme.weights.num_bits
    found = quantize_stored(bits, numerics, (2**width - 1) / 2, partial(integers, width))
    outputs = {"weight_scale": found.scales}
    if numerics.scheme.format == "pack-quantized":
        outputs["weight_packed"] = pack_words(offset_binary(found.codes, width), width)
        outputs["weight_shape"] = np.array(shape, np.uint64)
    else:
        outputs["weight"] = found.codes
    return outputs, (found.error, found.energy)


def decode(tensors: Mapping[str, Tensor], shape: tuple[int, int], scheme: Scheme) -> Decoded:
    """Read what `quantize` wrote. See `Family.decode`."""
    import torch

    bits, scale = scheme.weights.num_bits, tensors["weight_scale"].to(torch.float32)
    if scheme.format == "pack-quantized":
        codes = _unpacked(tensors["weight_packed"], bits, shape[1])
    else:
        codes = tensors["weight"].to(torch.float32)
    zero = tensors.get("weight_zero_point")
    if zero is not None and _packs_zero_points(scheme):
        zero = _unpacked(zero.T.contiguous(), bits, shape[0]).T.contiguous()
    return Decoded(codes, scale, None if zero is None else zero.to(torch.float32))


def roundtrip(numerics: Numerics) -> Roundtrip:
    """See `Family.roundtrip`."""
    return _of(numerics).roundtrip


def _of(numerics: Numerics) -> Integers:
    from ctcli.ops.integers import Integers

    weights = numerics.scheme.weights
    return Integers(
        weights.num_bits, weights.symmetric, numerics.torch_dtype, numerics.quotient_dtype
    )


def _packs_zero_points(scheme: Scheme) -> bool:
    """compressed-tensors packs zero points of rows and groups, along the rows, but no others."""
    weights = scheme.weights
    packs = scheme.format == "pack-quantized" and weights.strategy in ("channel", "group")
    return packs and not weights.symmetric


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Int8 codes as int32 words, on the CPU."""
    import torch

    from ctcli.ops.packing import offset_binary, pack_words

    unsigned = offset_binary(codes.view(torch.uint8).cpu().numpy(), bits)
    return torch.from_numpy(pack_words(unsigned, bits).view("i4"))


def _unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """The codes in int32 words, as float32."""
    import torch

    from ctcli.ops.packing import unpack_words

    unsigned = torch.from_numpy(unpack_words(words.numpy().view("u4"), bits, columns))
    return unsigned.to(torch.float32).sub_(1 << (bits - 1))


def _words(elements: int, bits: int) -> int:
    """32-bit words that so many packed elements fill."""
    return math.ceil(elements * bits / 32)
