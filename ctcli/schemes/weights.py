"""From a stored weight and a scheme to the lazy tensors that stand for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from ctcli.schemes import family_of
from ctcli.schemes.family import Execution, Numerics, WholeFamily
from ctcli.schemes.ranges import grouping_of
from ctcli.tensors import Derivation, NonFiniteError, Reduction, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor


def derive(
    name: str,
    source: StoredTensor,
    numerics: Numerics,
    execution: Execution,
    shared: Reduction | None,
) -> Derivation:
    """The tensors that stand for one weight.

    Args:
        name: its module.
        source: the weight, [rows, columns].
        numerics: how to quantize it.
        execution: how to compute.
        shared: the largest magnitude of its fused set, for strategy tensor_group.
    """
    family = family_of(numerics.scheme)
    needs = (shared,) if shared else ()
    if numerics.scheme.weights.strategy == "tensor":
        needs = (_range_of(source, numerics, execution),)
    return Derivation(
        name,
        source,
        family.granule(numerics.scheme),
        family.outputs(numerics, source.spec),
        partial(quantize_rows, source.spec.shape, numerics, execution),
        needs,
    )


def quantize_rows(
    shape: tuple[int, ...],
    numerics: Numerics,
    execution: Execution,
    block: Tensor,
    _start: int,
    values: tuple[Tensor, ...],
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Quantize some rows of a weight of that shape, given the value over the whole if there is one.

    Returns:
        The rows of each output, and [2] float64: the sums of squares of the error (of what a
        reader computes, in float32) and of the weight.

    Raises:
        NonFiniteError: the rows hold NaN or infinities, and that is not allowed.
    """
    import torch

    from ctcli.ops.sums import sum_of_squares

    weight = block.to(execution.device).to(torch.float32)
    whole = values[0].to(execution.device) if values else None
    energy = sum_of_squares(weight)
    if not energy.isfinite() and not execution.allow_nonfinite:
        raise NonFiniteError(
            "Repair the checkpoint, leave the module out with --ignore, or give --allow-nonfinite."
        )
    outputs, restored = family_of(numerics.scheme).quantize(weight, shape, numerics, whole)
    sums = torch.stack((sum_of_squares(restored.sub_(weight)), energy))
    return {name: tensor.cpu() for name, tensor in outputs.items()}, sums.cpu()


def largest_magnitude(sources: Sequence[StoredTensor], execution: Execution) -> Reduction:
    """max|w| over all `sources`: [1] float32."""
    return Reduction(tuple(sources), partial(_amax, execution), "max", _as_is)


def _range_of(source: StoredTensor, numerics: Numerics, execution: Execution) -> Reduction:
    """[low, high] of the whole weight, as the observer has it."""
    widest = Reduction((source,), partial(_widest, numerics, execution), "max", _low_and_high)
    if numerics.observer == "minmax":
        return widest
    return Reduction((source,), partial(_errors, numerics, execution), "sum", _shrink, widest)


def _amax(execution: Execution, block: Tensor, _: Tensor | None) -> Tensor:
    from ctcli.ops.sums import largest_magnitude as largest

    return largest(block.to(execution.device)).cpu()


def _widest(numerics: Numerics, execution: Execution, block: Tensor, _: Tensor | None) -> Tensor:
    import torch

    from ctcli.ops.ranges import widest_bounds

    weight = block.to(execution.device).to(torch.float32)
    view = grouping_of(numerics.scheme.weights).view(weight)
    low, high = widest_bounds(view, numerics.scheme.weights.symmetric)
    return torch.stack((-low.view(()), high.view(()))).cpu()


def _low_and_high(widest: Tensor, _: Tensor | None) -> Tensor:
    import torch

    return torch.stack((-widest[0], widest[1]))


def _errors(
    numerics: Numerics, execution: Execution, block: Tensor, bounds: Tensor | None
) -> Tensor:
    """Squared error of the block for each range that mse tries."""
    import torch

    from ctcli.ops.ranges import shrunk_errors

    assert bounds is not None, "the widest range comes first"
    weight = block.to(execution.device).to(torch.float32)
    view = grouping_of(numerics.scheme.weights).view(weight)
    low, high = bounds.to(execution.device).view(2, 1, 1, 1, 1)
    roundtrip = cast(WholeFamily, family_of(numerics.scheme)).roundtrip(numerics)
    errors = shrunk_errors(view, (low, high), roundtrip)
    return torch.stack([error.to(torch.float64).view(()) for _, error in errors]).cpu()


def _shrink(errors: Tensor, bounds: Tensor | None) -> Tensor:
    from ctcli.ops.ranges import SHRINKS

    assert bounds is not None, "the widest range comes first"
    return bounds * SHRINKS[int(errors.argmin())]


def _as_is(combined: Tensor, _: Tensor | None) -> Tensor:
    return combined
