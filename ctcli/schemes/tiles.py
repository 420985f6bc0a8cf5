"""Tiles of a weight, which share a scale, and the shapes of their scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctcli.lazy.nodes import Input, LazyTensor, Output, Shape, matrix_shape
from ctcli.lazy.tensors import TensorSpec
from ctcli.schemes.arguments import QuantizationArgs

if TYPE_CHECKING:
    from ctcli.ops.quantized import Array


def tile_of(arguments: QuantizationArgs) -> tuple[int | None, int | None]:
    """Rows and columns that share a scale; None stands for all there are."""
    if arguments.block_structure:
        return arguments.block_structure
    return (None, None) if arguments.strategy == "tensor" else (1, arguments.group_size)


def granule_of(arguments: QuantizationArgs) -> tuple[int, int]:
    """Rows, and columns, that have to be quantized together once the ranges of rows are known."""
    height, width = tile_of(arguments)
    return height or 1, width or 1


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


def stored_scales(scales: Array, arguments: QuantizationArgs, dtype: str) -> Array:
    """Scales that a dtype holds exactly, as it is stored, in the shape of `scale_output`."""
    import numpy as np

    from ctcli.ops.bits import from_floats

    with np.errstate(over="ignore", invalid="ignore"):  # NaN
        bits = from_floats(scales.copy(), dtype)
    return bits.reshape(1) if arguments.strategy == "tensor" else bits


def read_scales(bits: Array, dtype: str) -> Array:
    """Undo it: float32 [row tiles, column tiles]."""
    import numpy as np

    from ctcli.ops.bits import to_floats

    return to_floats(bits.reshape(-1, bits.shape[-1]), dtype, np.float32)


def stored_inputs(
    tensors: Mapping[str, LazyTensor],
    outputs: Mapping[str, Output],
    granule: Shape,
    shape: Shape,
) -> dict[str, Input]:
    """How the tensors of a quantized weight run along it.

    Args:
        tensors: by suffix.
        outputs: what quantizing would make of the weight; other tensors are not cut.
        granule: rows and columns of the weight that belong together.
        shape: [rows, columns] of the weight.
    """
    return {
        suffix: Input(
            tensor,
            matrix_shape(tensor.spec.shape),
            each=each_of(outputs.get(suffix), granule, shape),
        )
        for suffix, tensor in tensors.items()
    }


def each_of(output: Output | None, granule: Shape, shape: Shape) -> Shape:
    """The rows and columns of a tensor that stand for a granule of the weight; 0: all of them."""
    if output is None or output.is_whole:
        return 0, 0
    down, across = (
        max(1, size * together // max(1, length))
        for size, together, length in zip(output.spec.shape, granule, shape, strict=True)
    )
    # The scales of rows, for some of their columns.
    return down, 0 if output.spec.shape[1] == 1 else across
