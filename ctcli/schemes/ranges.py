"""Tiles and scales of a weight: their shapes, and the bounds that an observer finds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import Output, TensorSpec
from ctcli.schemes.arguments import QuantizationArgs
from ctcli.schemes.family import Numerics

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Bits
    from ctcli.ops.grouping import Grouping
    from ctcli.ops.ranges import Bounds, Roundtrip
    from ctcli.ops.stored_weights import Encode, QuantizedRows


def tile_of(arguments: QuantizationArgs) -> tuple[int | None, int | None]:
    """Rows and columns that share a scale; None stands for all there are."""
    if arguments.block_structure:
        return arguments.block_structure
    return (None, None) if arguments.strategy == "tensor" else (1, arguments.group_size)


def granule_of(arguments: QuantizationArgs) -> tuple[int, int]:
    """Rows, and columns, that have to be quantized together once the bounds of rows are known."""
    height, width = tile_of(arguments)
    return height or 1, width or 1


def grouping_of(arguments: QuantizationArgs) -> Grouping:
    """The same as views of tensors. Imports torch."""
    from ctcli.ops.grouping import Grouping

    return Grouping(*tile_of(arguments))


def scale_output(arguments: QuantizationArgs, weight: TensorSpec, dtype: str) -> Output:
    """Shape of the scales of `weight`.

    Args:
        arguments: of the weights.
        weight: the weight, [rows, columns].
        dtype: safetensors tag of the scales.
    """
    height, width = tile_of(arguments)
    if height is None:
        return Output(TensorSpec(dtype, (1,)), is_whole=True)
    down = math.ceil(weight.shape[0] / height)
    across = math.ceil(weight.shape[1] / (width or weight.shape[1]))
    return Output(TensorSpec(dtype, (down, across)))


def stored_scale(scale: Tensor, arguments: QuantizationArgs) -> Tensor:
    """The scales of a grouped view in the shape that `scale_output` declares."""
    return scale.view(1) if arguments.strategy == "tensor" else scale.squeeze(3).squeeze(1)


def find_bounds(
    view: Tensor, numerics: Numerics, whole: Tensor | None, roundtrip: Roundtrip
) -> Bounds:
    """The range of each group of a grouped view, as the observer has it.

    Args:
        view: the weight's rows, grouped.
        numerics: observer and symmetry.
        whole: the ranges of the whole weight, or of its rows: [low, high], each [1] or [rows];
            None: `view` holds whole groups.
        roundtrip: what quantizing with given bounds makes of the view.
    """
    from ctcli.ops.ranges import best_bounds, widest_bounds

    if whole is not None:
        return whole[0].view(-1, 1, 1, 1), whole[1].view(-1, 1, 1, 1)
    symmetric = numerics.scheme.weights.symmetric
    if numerics.observer == "minmax":
        return widest_bounds(view, symmetric)
    return best_bounds(view, symmetric, roundtrip)


def quantize_stored(
    bits: Bits, numerics: Numerics, divisor: float, encode: Encode
) -> QuantizedRows:
    """Quantize some stored rows without torch; see `ops.stored_weights.Rounding`."""
    from ctcli.ops.stored_weights import Rounding, quantize

    tile, rounds = tile_of(numerics.scheme.weights), numerics.compute_dtype == "weight"
    return quantize(bits, Rounding(numerics.dtype, tile, divisor, encode, rounds))
