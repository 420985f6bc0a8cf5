"""From the values of a group to the range that its scale covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ctcli.ops.device.grouping import Grouping
from ctcli.ops.quantized import Search

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


def best_bounds(view: Tensor, symmetric: bool, roundtrip: Roundtrip, search: Search) -> Bounds:
    """The part of the range of each group where the error of a round trip is least."""
    low, high = widest_bounds(view, symmetric)
    errors = errors_of_parts(view, (low, high), roundtrip, search)
    first, least = next(errors)
    best = torch.full_like(high, first)
    for part, error in errors:
        best = best.masked_fill_(error < least, part)
        least = torch.minimum(error, least)
    return low * best, high * best


def errors_of_parts(
    view: Tensor, bounds: Bounds, roundtrip: Roundtrip, search: Search
) -> Iterator[tuple[float, Tensor]]:
    """Each group's error after a round trip, for every part that a search tries."""
    wide = bounds[1].double().square()
    factors = torch.where(wide > 0, 1 / wide, 0).float()
    for part in search.parts:
        errors = roundtrip(view, (bounds[0] * part, bounds[1] * part)).sub_(view).square_()
        if search.power == 4:
            errors = errors.mul_(factors).square_()
        yield part, Grouping.sum(errors)


def nonzero_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a float32 scale to `dtype`, and replace zero (an empty group) by its epsilon.

    Returns:
        float32 values that `dtype` holds exactly.
    """
    rounded = scale.to(dtype).to(torch.float32)
    return rounded.masked_fill_(rounded == 0, torch.finfo(dtype).eps)
