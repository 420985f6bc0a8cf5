"""From the values of a group to the range that its scale covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ctcli.ops.device.grouping import Grouping
from ctcli.ops.quantized import SHRINKS

# Lower and upper end of each group's range, zero included; symmetric ranges are [-amax, amax].
Bounds = tuple[Tensor, Tensor]
# (grouped view, bounds) -> the values that a reader gets back.
Roundtrip = Callable[[Tensor, Bounds], Tensor]


def widest_bounds(view: Tensor, symmetric: bool) -> Bounds:
    """The range of each group of a grouped view."""
    if not symmetric:
        return Grouping.bounds(view)
    amax = Grouping.amax(view)
    return -amax, amax


def best_bounds(view: Tensor, symmetric: bool, roundtrip: Roundtrip) -> Bounds:
    """The range of each group, shrunk to where the squared error of a round trip is least."""
    low, high = widest_bounds(view, symmetric)
    errors = shrunk_errors(view, (low, high), roundtrip)
    _, least = next(errors)
    best = torch.ones_like(high)
    for shrink, error in errors:
        best = best.masked_fill_(error < least, shrink)
        least = torch.minimum(error, least)
    return low * best, high * best


def shrunk_errors(
    view: Tensor, bounds: Bounds, roundtrip: Roundtrip
) -> Iterator[tuple[float, Tensor]]:
    """Each group's squared error after a round trip, for every element of `SHRINKS`."""
    for shrink in SHRINKS:
        values = roundtrip(view, (bounds[0] * shrink, bounds[1] * shrink))
        yield shrink, Grouping.sum(values.sub_(view).square_())


def positive_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a float32 scale to `dtype`, and replace zero (an empty group) by its epsilon.

    Returns:
        float32 values that `dtype` holds exactly.
    """
    rounded = scale.to(dtype).to(torch.float32)
    return rounded.masked_fill_(rounded == 0, torch.finfo(dtype).eps)
