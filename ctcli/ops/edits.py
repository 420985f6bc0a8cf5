"""Edits of a block in one pass: columns and rows times factors, rounded once; projections.

Blocks are stored bits (unsigned integers of the element's size) or floats; see `loading.operand`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import float32, float64, uint16, uint32
from numpy.typing import NDArray

from ctcli.ops.elements import BF16, F16, F32, KINDS, to_bf16, to_f16, to_odd
from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loading import load, operand
from ctcli.ops.walsh import RowTransform, transform_row

if TYPE_CHECKING:
    from ctcli.ops.bits import Bits, Floats

_RESULTS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.float32, "F64": np.float64}
_MAGNITUDE, _INFINITE_BF16, _INFINITE_F16 = uint32(0x7FFF), uint32(0x7F80), uint32(0x7C00)
_LANES = 16
_PIECE = 1 << 12
"""Elements of a row at a time, so that they stay in the first cache."""


def edited(
    block: NDArray[Any],
    tag: str,
    target: str,
    *,
    gain: Floats | None = None,
    divides: bool = False,
    by_row: Floats | None = None,
    transform: RowTransform | None = None,
    in_float32: bool = False,
    device: str = "cpu",
) -> tuple[Bits, bool]:
    """Multiply columns by a gain, or divide them; multiply rows; round once to what is stored.

    A row may be transformed before it is rounded; that is done on the CPU alone.

    Args:
        block: [rows, columns], stored or floats.
        tag: its dtype, BF16, F16, F32 or F64.
        target: the result's.
        gain: [columns]; None: only the dtype changes.
        divides: divide by the gain.
        by_row: factors of the rows [rows], after the gain; None: they have none.
        transform: of each row, in the floats that are computed in; None: there is none.
        in_float32: compute in float32, in which products of two 16-bit floats are exact (but below
            2**-126), instead of float64.
        device: `cpu`, or what torch calls another one.

    Returns:
        [rows, columns], unsigned integers of the target's size; and whether all are finite.
    """
    if device != "cpu":
        from ctcli.ops.device import edits

        return edits.edited(
            block,
            tag,
            target,
            gain=gain,
            divides=divides,
            by_row=by_row,
            in_float32=in_float32,
            device=device,
        )
    elements, kind = operand(block, tag)
    dtype = np.float32 if in_float32 else np.float64
    nothing = np.empty(0, dtype)
    with np.errstate(over="ignore"):
        factors = nothing if gain is None else np.ascontiguousarray(gain, dtype)
        of_rows = nothing if by_row is None else np.ascontiguousarray(by_row, dtype)
    out = np.empty(elements.shape, _RESULTS[target])
    turn = transform or RowTransform(nothing, np.empty((0, 2), np.int64), nothing)
    buffer = np.empty(elements.shape[1] if transform else _PIECE, dtype)
    is_finite = _edit(elements, kind, factors, divides, of_rows, turn, buffer, out, KINDS[target])
    return out.view(f"u{out.itemsize}"), bool(is_finite)


def projected(
    block: NDArray[Any], tag: str, vector: Floats, bias: Floats | None = None, device: str = "cpu"
) -> NDArray[np.float64]:
    """Multiply rows with a vector in float64, and add a bias: W v + b.

    What a row gives does not depend on the others (on other devices it may, by rounding).

    Args:
        block: W [rows, columns], stored or floats.
        tag: its dtype.
        vector: v [columns].
        bias: b [rows].
        device: `cpu`, or what torch calls another one.

    Returns:
        [rows].
    """
    if device != "cpu":
        from ctcli.ops.device import edits

        return edits.projected(block, tag, vector, bias, device)
    elements, kind = operand(block, tag)
    out, work = np.empty(len(elements)), np.empty(_LANES + _PIECE)
    _project(elements, kind, np.ascontiguousarray(vector, np.float64), work, out)
    if bias is not None:
        out += bias
    return out


@kernel
def _edit(
    elements: NDArray[Any],
    kind: int,
    factors: NDArray[Any],
    divides: bool,
    of_rows: NDArray[Any],
    transform: RowTransform,
    buffer: NDArray[Any],
    out: NDArray[Any],
    target: int,
) -> bool:
    """Fill `out`, in pieces that a buffer of the factors' dtype takes; whether all is finite."""
    rows, columns = elements.shape
    is_finite = True
    for i in range(rows):
        for start in range(0, columns, max(1, buffer.size)):
            stop = min(columns, start + buffer.size)
            line, result = buffer[: stop - start], out[i, start:stop]
            load(line, elements[i, start:stop], kind)
            if factors.size:
                _times(line, factors[start:stop], divides)
            if of_rows.size:
                factor = of_rows[i]
                for j in range(line.size):
                    line[j] *= factor
            if transform.first.size:
                transform_row(line, transform)
            if factors.itemsize == 8:
                _store_wide(result, line, target)
            else:
                _store(result, line, target)
            is_finite = _all_finite(result, target) and is_finite
    return is_finite


@inlined
def _times(line: NDArray[Any], factors: NDArray[Any], divides: bool) -> None:
    if divides:
        for i in range(line.size):
            line[i] /= factors[i]
    else:
        for i in range(line.size):
            line[i] *= factors[i]


@inlined
def _store(out: NDArray[Any], line: NDArray[Any], target: int) -> None:
    """Round float32 values to what is stored."""
    if target == BF16:
        for i in range(out.size):
            out[i] = to_bf16(float32(line[i]))
    elif target == F16:
        for i in range(out.size):
            out[i] = to_f16(float32(line[i]))
    else:
        for i in range(out.size):
            out[i] = line[i]


@inlined
def _store_wide(out: NDArray[Any], line: NDArray[Any], target: int) -> None:
    """Round float64 values to what is stored, once."""
    if target == BF16:
        for i in range(out.size):
            out[i] = to_bf16(to_odd(float64(line[i])))
    elif target == F16:
        for i in range(out.size):
            out[i] = to_f16(to_odd(float64(line[i])))
    elif target == F32:
        for i in range(out.size):
            out[i] = float32(line[i])
    else:
        for i in range(out.size):
            out[i] = line[i]


@inlined
def _all_finite(stored: NDArray[Any], kind: int) -> bool:
    if kind in (BF16, F16):
        largest = uint32(0)
        for i in range(stored.size):
            largest = max(largest, uint32(uint32(uint16(stored[i])) & _MAGNITUDE))
        return bool(largest < (_INFINITE_BF16 if kind == BF16 else _INFINITE_F16))
    others = 0
    for i in range(stored.size):
        x = float64(stored[i])
        others += 0 if x - x == 0 else 1
    return others == 0


@kernel
def _project(
    elements: NDArray[Any],
    kind: int,
    vector: NDArray[np.float64],
    work: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Fill `out`: sixteen sums a row, which are added up in pairs at last."""
    rows, columns = elements.shape
    sums, buffer = work[:_LANES], work[_LANES:]
    for row in range(rows):
        sums[:] = 0.0
        for start in range(0, columns, _PIECE):
            stop = min(columns, start + _PIECE)
            line, factors = buffer[: stop - start], vector[start:stop]
            load(line, elements[row, start:stop], kind)
            whole = line.size // _LANES * _LANES
            for first in range(0, whole, _LANES):
                some, others = line[first : first + _LANES], factors[first : first + _LANES]
                for i in range(_LANES):
                    sums[i] += some[i] * others[i]
            for i in range(whole, line.size):
                sums[i - whole] += line[i] * factors[i]
        half = _LANES
        while half > 1:
            half //= 2
            for i in range(half):
                sums[i] += sums[i + half]
        out[row] = sums[0]
