"""From a stored weight and a scheme to the lazy tensors that stand for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from ctcli.lazy.tensors import (
    Derivation,
    Direct,
    Matrix,
    NonFiniteError,
    Output,
    Reduction,
    TensorSpec,
)
from ctcli.schemes import family_of
from ctcli.schemes.family import Execution, Numerics, PlainFamily
from ctcli.schemes.ranges import grouping_of

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Bits, Floats

_HINT = "Repair the checkpoint, leave the module out with --ignore, or give --allow-nonfinite."


def derive(
    name: str,
    matrix: Matrix,
    numerics: Numerics,
    execution: Execution,
    shared: Reduction | None,
) -> Derivation:
    """The tensors that stand for one weight.

    Args:
        name: its module.
        matrix: the weight, [rows, columns].
        numerics: how to quantize it.
        execution: how to compute.
        shared: the largest magnitude of its fused set, for strategy tensor_group.
    """
    family, strategy = family_of(numerics.scheme), numerics.scheme.weights.strategy
    by_columns = matrix.is_columnwise
    outputs = family.outputs(numerics, TensorSpec(numerics.dtype, matrix.shape))
    needs = (shared,) if shared else ()
    if strategy == "tensor" or (strategy == "channel" and by_columns):
        needs = (_range_of(matrix, numerics, execution),)
    if strategy == "channel" and by_columns:
        outputs = {name: _whole_for_rows(output) for name, output in outputs.items()}
    return Derivation(
        name,
        matrix,
        math.lcm(matrix.granule[by_columns], family.granule(numerics.scheme)[by_columns]),
        outputs,
        partial(quantize_block, matrix.shape, numerics, execution),
        needs,
        direct=_direct(matrix, numerics, execution),
    )


def _whole_for_rows(output: Output) -> Output:
    """The first columns of a weight give all scales of its rows."""
    return replace(output, is_whole=output.is_whole or output.spec.shape[1] == 1)


def _direct(matrix: Matrix, numerics: Numerics, execution: Execution) -> Direct | None:
    """How to quantize a weight without torch: finite, as stored, symmetrically, by tiles' ranges.

    That arithmetic takes no longer in numpy, so that the time to load torch is saved.
    """
    weights = numerics.scheme.weights
    if matrix.compute or matrix.source.spec.dtype != numerics.dtype or numerics.dtype == "F64":
        return None
    if numerics.observer != "minmax" or execution != Execution("cpu", allow_nonfinite=False):
        return None
    if weights.scale_dtype or weights.strategy == "tensor" or not weights.symmetric:
        return None
    return Direct(partial(_quantize_bits, matrix.shape, numerics))


def _quantize_bits(
    shape: tuple[int, ...], numerics: Numerics, stored: Bits, _: tuple[Floats, ...]
) -> tuple[Mapping[str, Bits], Sequence[float]]:
    """See `quantize_block`."""
    family = cast(PlainFamily, family_of(numerics.scheme))
    outputs, (error, energy) = family.quantize_bits(stored, shape, numerics)
    if not math.isfinite(energy):
        raise NonFiniteError(_HINT)
    return outputs, (error, energy)


def quantize_block(
    shape: tuple[int, ...],
    numerics: Numerics,
    execution: Execution,
    block: Tensor,
    _start: int,
    values: tuple[Tensor, ...],
) -> tuple[Mapping[str, Tensor], Sequence[float]]:
    """Quantize rows (columns) of a weight of that shape, given what is known of the whole.

    Returns:
        Those of each output; and the sums of squares of the error (of what a reader computes,
        in float32) and of the weight.

    Raises:
        NonFiniteError: they hold NaN or infinities, and that is not allowed.
    """
    import torch

    from ctcli.ops.sums import sum_of_squares

    weight = block.to(execution.device).to(torch.float32)
    whole = values[0].to(execution.device) if values else None
    energy = sum_of_squares(weight)
    if not math.isfinite(energy) and not execution.allow_nonfinite:
        raise NonFiniteError(_HINT)
    outputs, restored = family_of(numerics.scheme).quantize(weight, shape, numerics, whole)
    error = sum_of_squares(restored.sub_(weight))
    return {name: tensor.cpu() for name, tensor in outputs.items()}, (error, energy)


def largest_magnitude(matrices: Sequence[Matrix], execution: Execution) -> Reduction:
    """max|w| over all `matrices`: [1] float32."""
    return Reduction(tuple(matrices), partial(_amax, execution), "max", _as_is)


def _range_of(matrix: Matrix, numerics: Numerics, execution: Execution) -> Reduction:
    """[low, high] of the whole weight, or of each of its rows, as the observer has it."""
    widest = Reduction((matrix,), partial(_widest, numerics, execution), "max", _low_and_high)
    if numerics.observer == "minmax":
        return widest
    return Reduction((matrix,), partial(_errors, numerics, execution), "sum", _shrink, widest)


def _amax(execution: Execution, block: Tensor, _: Tensor | None) -> Tensor:
    from ctcli.ops.sums import largest_magnitude as largest

    return largest(block.to(execution.device)).cpu()


def _widest(numerics: Numerics, execution: Execution, block: Tensor, _: Tensor | None) -> Tensor:
    import torch

    from ctcli.ops.ranges import widest_bounds

    weight = block.to(execution.device).to(torch.float32)
    view = grouping_of(numerics.scheme.weights).view(weight)
    low, high = widest_bounds(view, numerics.scheme.weights.symmetric)
    return torch.stack((-low.view(-1), high.view(-1))).cpu()


def _low_and_high(widest: Tensor, _: Tensor | None) -> Tensor:
    import torch

    return torch.stack((-widest[0], widest[1]))


def _errors(
    numerics: Numerics, execution: Execution, block: Tensor, bounds: Tensor | None
) -> Tensor:
    """Squared error of the block, or of each row in it, for each range that mse tries."""
    import torch

    from ctcli.ops.ranges import shrunk_errors

    assert bounds is not None, "the widest range comes first"
    weight = block.to(execution.device).to(torch.float32)
    view = grouping_of(numerics.scheme.weights).view(weight)
    low, high = bounds.to(execution.device).view(2, -1, 1, 1, 1)
    roundtrip = cast(PlainFamily, family_of(numerics.scheme)).roundtrip(numerics)
    errors = shrunk_errors(view, (low, high), roundtrip)
    return torch.stack([error.to(torch.float64).view(-1) for _, error in errors]).cpu()


def _shrink(errors: Tensor, bounds: Tensor | None) -> Tensor:
    import torch

    from ctcli.ops.ranges import SHRINKS

    assert bounds is not None, "the widest range comes first"
    return bounds * torch.tensor(SHRINKS, dtype=torch.float32)[errors.argmin(0)]


def _as_is(combined: Tensor, _: Tensor | None) -> Tensor:
    return combined
