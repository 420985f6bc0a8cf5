"""What is wrong with stored values: counts of those that cannot be right, and errors of others.

Sums of squares are taken in float64, sixteen at a time, which are added up in pairs at last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import float64, int64, uint64
from numpy.typing import NDArray

from ctcli.ops.dtypes import DTYPES
from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loading import load, operand

if TYPE_CHECKING:
    from ctcli.ops.bits import Bits, Floats

_LEAST = 1e-30
# Mantissa bits and the exponent of the smallest normal number.
_FORMATS = {"BF16": (7, -126), "F16": (10, -14), "F32": (23, -126), "F64": (52, -1022)}
_LANES, _ALL_LANES = 16, 48
_0, _STEP = uint64(0), uint64(_LANES)
_PIECE = 1 << 11
_EXPONENT, _BIAS, _MANTISSA = uint64(0x7FF), 1023, uint64(52)


def count_nonfinite(bits: Bits, tag: str) -> int:
    """How many stored values are NaN or infinite; of any dtype, where others are all finite."""
    if not DTYPES[tag].infinity or not bits.size:
        return 0
    magnitude = bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    first = bits.dtype.type(DTYPES[tag].infinity)
    return int(_count_from(np.ascontiguousarray(bits).reshape(-1), magnitude, first))


def count_nonpositive(bits: Bits, tag: str) -> int:
    """How many stored values of a float dtype are zero or negative (but for NaN)."""
    magnitudes = bits & bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    first = bits.dtype.type(DTYPES[tag].infinity)
    is_number = magnitudes < first if tag == "F8_E4M3" else magnitudes <= first
    return int(((magnitudes == 0) | ((bits != magnitudes) & is_number)).sum())


def count_zeros(bits: Bits) -> int:
    """How many stored values of a float dtype are zero."""
    magnitudes = bits & bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    return int((magnitudes == 0).sum())


def count_outside(x: NDArray[np.integer], lowest: int, highest: int) -> int:
    """How many integers are outside a range."""
    if not x.size or (int(x.min()) >= lowest and int(x.max()) <= highest):
        return 0
    return int(((x < lowest) | (x > highest)).sum())


def count_padded(words: Bits, used: int) -> int:
    """How many 32-bit words have a bit set beyond the first `used`."""
    return 0 if used >= 32 else int((words.view(np.uint32) >> np.uint32(used) != 0).sum())


def count_different(x: Bits, y: Bits) -> int:
    """How many elements of two arrays of one dtype and shape differ in their bits."""
    return int(np.count_nonzero(x != y))


@dataclass(frozen=True)
class Deviation:
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


def errors_of(values: Floats, expected: Floats) -> Deviation:
    """Compare a block of values with what they should be, as one group without a bound.

    Args:
        values: [rows, columns] float32.
        expected: likewise.
    """
    flat, exact = values.reshape(-1), expected.reshape(-1)
    error, energy, largest = map(float, _errors(flat, exact, np.zeros(_ALL_LANES)))
    largest = math.nan if math.isnan(error) else largest
    return Deviation(values.size, error, energy, largest, excess=0.0, row=0, column=0)


def rounding_errors(found: NDArray[Any], tag: str, expected: Floats) -> tuple[Deviation, int]:
    """Compare stored values with exact ones that they should be rounded from; groups are rows.

    Args:
        found: [rows, columns] as stored.
        tag: BF16, F16, F32 or F64.
        expected: likewise, float64.

    Returns:
        The errors, beside half the distance of each value to the next larger magnitude; and how
        many of the values are NaN or infinite.
    """
    elements, kind = operand(found, tag)
    rows, columns = elements.shape
    squares, bounds = np.zeros((2, rows, 1))
    mantissa, smallest = _FORMATS[tag]
    exact = np.ascontiguousarray(expected, np.float64)
    work = np.zeros(_ALL_LANES + _LANES + _PIECE)
    *sums, nonfinite = _rounding(elements, kind, mantissa, smallest, exact, work, squares, bounds)
    errors = worst(squares, bounds, sums, elements.size, (1, max(1, columns)))
    return errors, int(nonfinite)


def worst(
    squares: Floats,
    bounds: Floats,
    sums: Sequence[float],
    count: int,
    tile: tuple[int, int],
) -> Deviation:
    """The errors of groups as one.

    Args:
        squares: by group, the sum of the squares of errors: [row tiles, column tiles].
        bounds: likewise, that of the squares of the largest errors that rounding leaves.
        sums: the energy, and the largest error.
        count: of values.
        tile: rows and columns of a group.
    """
    with np.errstate(all="ignore"):
        # Of groups that are next to nothing, squares are subnormal.
        excess = squares / np.maximum(bounds, _LEAST)
    excess[np.isnan(excess)] = 0.0
    worst = int(excess.argmax())
    row, column = divmod(worst, squares.shape[1])
    error = float(squares.sum())  # NaN if an error is
    return Deviation(
        count=count,
        error=error,
        energy=float(sums[0]),
        largest=math.nan if math.isnan(error) else float(sums[1]),
        excess=math.sqrt(excess.flat[worst]),
        row=row * tile[0],
        column=column * tile[1],
    )


@kernel
def _count_from(bits: NDArray[Any], magnitude: Any, first: Any) -> int:
    """How many have magnitude bits of at least `first`."""
    count = 0
    for start in range(0, bits.size, _PIECE):
        some = bits[start : start + _PIECE]
        largest = magnitude & magnitude ^ magnitude  # zero, of this dtype
        for i in range(some.size):
            largest = max(largest, some[i] & magnitude)
        if largest >= first:
            for i in range(some.size):
                count += 1 if some[i] & magnitude >= first else 0
    return count


@kernel
def _errors(
    values: NDArray[Any],
    expected: NDArray[Any],
    lanes: NDArray[np.float64],
) -> tuple[float64, float64, float64]:
    """The sum of squared errors, the energy, and the largest error; lanes are zeros at first."""
    _add_squares(values, expected, lanes)
    energy, largest = _finish(lanes)
    return _total(lanes), energy, largest


@kernel
def _rounding(
    elements: NDArray[Any],
    kind: int,
    mantissa: int,
    smallest: int,
    expected: NDArray[np.float64],
    work: NDArray[np.float64],
    squares: NDArray[np.float64],
    bounds: NDArray[np.float64],
) -> tuple[float64, float64, float64]:
    """Set squares and bounds of rows; the energy, the largest error and how many are not finite.

    The work is zeros.
    """
    rows, columns = elements.shape
    lanes, steps = work[:_ALL_LANES], work[_ALL_LANES : _ALL_LANES + _LANES]
    buffer = work[_ALL_LANES + _LANES :]
    exponents = buffer.view(np.uint64)
    nonfinite = 0
    for row in range(rows):
        lanes[:_LANES] = 0.0
        steps[:] = 0.0
        for start in range(0, columns, _PIECE):
            stop = min(columns, start + _PIECE)
            found = buffer[: stop - start]
            load(found, elements[row, start:stop], kind)
            _add_squares(found, expected[row, start:stop], lanes)
            nonfinite += _add_steps(exponents[: stop - start], mantissa, smallest, steps)
        squares[row, 0] = _total(lanes)
        bounds[row, 0] = _total(steps)
    energy, largest = _finish(lanes)
    return energy, largest, float64(nonfinite)


@inlined
def _add_squares(values: NDArray[Any], expected: NDArray[Any], lanes: NDArray[np.float64]) -> None:
    """Add squared errors and squares of what is expected, and keep the largest errors.

    Args:
        values: [n].
        expected: [n].
        lanes: sixteen sums of squared errors, sixteen of the other squares, and sixteen largest
            errors, in which NaN does not count.
    """
    n = uint64(values.size)
    whole = n // _STEP * _STEP
    for first in range(_0, whole, _STEP):
        for i in range(_STEP):
            exact = expected[first + i]
            size, error = float64(exact), float64(values[first + i] - exact)
            magnitude = abs(error)
            lanes[i] += error * error
            lanes[_STEP + i] += size * size
            known = lanes[_STEP + _STEP + i]
            lanes[_STEP + _STEP + i] = magnitude if magnitude > known else known  # noqa: FURB136
    for j in range(whole, n):
        lane = j - whole
        size, error = float64(expected[j]), float64(values[j] - expected[j])
        lanes[lane] += error * error
        lanes[_STEP + lane] += size * size
        lanes[_STEP + _STEP + lane] = max(lanes[_STEP + _STEP + lane], abs(error))


@inlined
def _add_steps(
    bits: NDArray[np.uint64], mantissa: int, smallest: int, steps: NDArray[np.float64]
) -> int:
    """Add squares of half the step at each value, given as bits of float64; count the nonfinite."""
    nonfinite = 0
    for i in range(bits.size):
        biased = int64((bits[i] >> _MANTISSA) & _EXPONENT)
        is_finite = biased < 2 * _BIAS + 1
        nonfinite += 0 if is_finite else 1
        exponent = biased - _BIAS if is_finite else smallest
        exponent = exponent if exponent > smallest else smallest  # noqa: FURB136 (keeps its type)
        half = exponent - mantissa - 1 + _BIAS
        half = half if half > 0 else 0  # noqa: FURB136
        steps[i % _LANES] += _power(half) * _power(half)
    return nonfinite


@inlined
def _power(biased: int | int64) -> float64:
    """2**(biased - 1023); zero for 0."""
    found: float64 = uint64(uint64(biased) << _MANTISSA).view(float64)
    return found


@inlined
def _total(lanes: NDArray[np.float64]) -> float64:
    """The sum of the first sixteen numbers, which are overwritten."""
    half = _LANES
    while half > 1:
        half //= 2
        for i in range(half):
            lanes[i] += lanes[i + half]
    total: float64 = lanes[0]
    return total


@inlined
def _finish(lanes: NDArray[np.float64]) -> tuple[float64, float64]:
    """The energy and the largest error from the lanes of `_add_squares`."""
    largest = float64(0)
    for i in range(2 * _LANES, _ALL_LANES):
        largest = max(largest, lanes[i])
    return _total(lanes[_LANES : 2 * _LANES]), largest
