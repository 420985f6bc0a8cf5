"""What is wrong with stored values: counts of those that cannot be right, and errors of others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctcli.lazy.dtypes import facts_of
from ctcli.ops.grouping import Grouping
from ctcli.ops.sums import sum_of_squares

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEAST = 1e-30


def count_nonfinite(x: Tensor) -> int:
    """How many values are NaN or infinite; of any dtype, where integers are all finite."""
    first = facts_of(x.dtype).infinity
    if not first or not x.numel():
        return 0
    # Magnitudes are ordered as their bits are; isfinite itself is forty times slower.
    integer = _INTEGERS[x.element_size()]
    bits = x.view(integer).bitwise_and(torch.iinfo(integer).max)
    return int((bits >= first).sum()) if int(bits.amax()) >= first else 0


def count_nonpositive(x: Tensor) -> int:
    """How many values are zero or negative (but for NaN), of any float dtype."""
    return int((x.to(torch.float32) <= 0).sum())


def count_outside(x: Tensor, lowest: int, highest: int) -> int:
    """How many integers are outside a range."""
    if not x.numel() or (int(x.amin()) >= lowest and int(x.amax()) <= highest):
        return 0
    return int(((x < lowest) | (x > highest)).sum())


def count_padded(words: Tensor, used: int) -> int:
    """How many 32-bit words have a bit set beyond the first `used`."""
    return int((words.to(torch.int64).bitwise_and_(0xFFFFFFFF) >> used != 0).sum())


def count_different(x: Tensor, y: Tensor) -> int:
    """How many elements of two tensors of one dtype and shape differ in their bits."""
    integer = _INTEGERS.get(x.element_size(), torch.uint8)
    first, second = x.view(integer), y.view(integer)
    return 0 if torch.equal(first, second) else int((first != second).sum())


def rounding_bounds(values: Tensor, dtype: torch.dtype) -> Tensor:
    """By row, as a `Grouping` of rows has it: squares of half the step at each value, summed.

    Args:
        values: [rows, columns] float32 or float64, each one of `dtype`.
        dtype: a float of 16 bits or more.
    """
    facts = facts_of(dtype)
    exponent = torch.frexp(values).exponent.to(torch.float64) - 1
    half_steps = torch.exp2(exponent.clamp_(min=1 - facts.bias) - facts.mantissa - 1)
    return half_steps.square_().sum(1).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Errors:
    """Errors of some values.

    Attributes:
        count: how many values.
        error: sum of their squared errors.
        energy: sum of the squares of what they should be.
        largest: largest magnitude of an error.
        excess: of the group where that is largest: the root mean square error, over that of the
            largest errors that rounding to the nearest leaves.
        row: first row of that group in its block.
        column: first column.
    """

    count: int
    error: float
    energy: float
    largest: float
    excess: float
    row: int
    column: int


def errors_of(values: Tensor, expected: Tensor, grouping: Grouping, bounds: Tensor) -> Errors:
    """Compare a block of values with what they should be.

    Args:
        values: [rows, columns] float32 or float64. Overwritten.
        expected: likewise.
        grouping: its groups.
        bounds: by group, the sum of the squares of the largest errors that rounding leaves.
    """
    difference = values.sub_(expected)
    low, high = difference.aminmax()
    view = grouping.view(difference)
    squares = grouping.sum(view.square())
    # Of groups that are next to nothing, squares are subnormal.
    excess = (squares / bounds.clamp(min=_LEAST)).nan_to_num_(nan=0.0, posinf=math.inf)
    worst = int(excess.argmax())
    row, column = divmod(worst, view.shape[2])
    return Errors(
        count=difference.numel(),
        error=float(squares.double().sum()),
        energy=sum_of_squares(expected),
        largest=max(-float(low), float(high)),
        excess=float(excess.view(-1)[worst].sqrt()),
        row=row * view.shape[1],
        column=column * view.shape[3],
    )
