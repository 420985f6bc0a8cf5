"""From quantized tensors back to weights, as readers compute them, in float32.

compressed-tensors multiplies likewise, and rounds the product to the dtype of the scales or to
bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.schemes import family_of
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.ranges import grouping_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Restored:
    """Some rows of a weight, or some columns.

    Attributes:
        values: [rows, columns] float32.
        bounds: by group, as `Grouping` has it: the sum of the squares of half the step at each
            value, which is the largest error that rounding to the nearest leaves; float32.
    """

    values: Tensor
    bounds: Tensor


def restore(scheme: Scheme, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Restored:
    """Compute weights from what stands for them.

    Args:
        scheme: how they are quantized.
        tensors: by suffix: those rows (or columns) that belong to the weights.
        shape: of the weights, [rows, columns].
    """
    decoded = family_of(scheme).decode(tensors, shape, scheme)
    grouping = grouping_of(scheme.weights)
    view = grouping.view(decoded.codes)
    down, _, across, _ = view.shape
    scale = decoded.scale.view(-1, 1, decoded.scale.shape[-1], 1)
    bounds = scale.square().expand(down, 1, across, 1)
    if decoded.half_steps is None:
        bounds = bounds * (view.shape[1] * view.shape[3] / 4)
    else:
        bounds = bounds * grouping.sum(grouping.view(decoded.half_steps).square_())
    if decoded.zero is not None:
        view = view - decoded.zero.view(scale.shape)
    return Restored(grouping.flatten(view * scale, *shape), bounds)
