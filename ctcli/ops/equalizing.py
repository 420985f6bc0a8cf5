"""Sums for Sinkhorn's scaling of a matrix of squares: M = W * W, element by element.

A round finds r_i = 1 / sum_j M_ij c_j of each row, and what each column then adds up to,
sum_i r_i M_ij (Sinkhorn and Knopp 1967). All sums are in float64, and their order is that of the
columns in each row, and of the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float64
from numpy.typing import NDArray

from ctcli.ops.jit import inlined, kernel
from ctcli.ops.loading import load, operand

_LANES = 16
Vector = NDArray[np.float64]


def row_sums(block: NDArray[Any], tag: str, factors: Vector | None) -> Vector:
    """sum_j M_ij c_j over the columns at hand.

    Args:
        block: W [rows, columns], stored or floats; see `loading.operand`.
        tag: its dtype, BF16, F16, F32 or F64.
        factors: c [columns]; None: all are one.

    Returns:
        [rows].
    """
    elements, kind = operand(block, tag)
    rows, columns = elements.shape
    found = np.empty(rows)
    _sum_rows(elements, kind, _given(factors), np.empty(columns + _LANES), found)
    return found


def column_sums(
    block: NDArray[Any], tag: str, factors: Vector | None, sums_of_rows: Vector | None = None
) -> Vector:
    """sum_i M_ij / r_i over the rows at hand; rows of zeros add nothing.

    Args:
        block: W [rows, columns], stored or floats.
        tag: its dtype.
        factors: c [columns]; None: all are one.
        sums_of_rows: r [rows], as `row_sums` adds them up; None: from the columns at hand, which
            are all there are.

    Returns:
        [columns]; NaN or infinite where W is, or a row of it.
    """
    elements, kind = operand(block, tag)
    columns = elements.shape[1]
    found = np.zeros(columns)
    known = _given(sums_of_rows)
    is_known = sums_of_rows is not None
    work = np.empty(columns + _LANES)
    _sum_columns(elements, kind, _given(factors), known, is_known, work, found)
    return found


def _given(vector: Vector | None) -> Vector:
    return np.empty(0) if vector is None else np.ascontiguousarray(vector, np.float64)


@inlined
def _row_sum(line: Vector, factors: Vector, lanes: Vector) -> float64:
    """Sixteen sums, which are added up in pairs at last; the line becomes its squares."""
    lanes[:] = 0.0
    whole = line.size // _LANES * _LANES
    for i in range(line.size):
        line[i] *= line[i]
    for first in range(0, whole, _LANES):
        some = line[first : first + _LANES]
        if factors.size:
            others = factors[first : first + _LANES]
            for i in range(_LANES):
                lanes[i] += some[i] * others[i]
        else:
            for i in range(_LANES):
                lanes[i] += some[i]
    for i in range(whole, line.size):
        lanes[i - whole] += line[i] * factors[i] if factors.size else line[i]
    half = _LANES
    while half > 1:
        half //= 2
        for i in range(half):
            lanes[i] += lanes[i + half]
    return float64(lanes[0])


@kernel
def _sum_rows(
    elements: NDArray[Any], kind: int, factors: Vector, work: Vector, out: Vector
) -> None:
    lanes, line = work[:_LANES], work[_LANES:]
    for i in range(elements.shape[0]):
        load(line, elements[i], kind)
        out[i] = _row_sum(line, factors, lanes)


@kernel
def _sum_columns(
    elements: NDArray[Any],
    kind: int,
    factors: Vector,
    known: Vector,
    is_known: bool,
    work: Vector,
    out: Vector,
) -> None:
    lanes, line = work[:_LANES], work[_LANES:]
    for i in range(elements.shape[0]):
        load(line, elements[i], kind)
        total = _row_sum(line, factors, lanes)
        if is_known:
            total = known[i]
        if total != 0.0:
            factor = 1.0 / total
            for j in range(line.size):
                out[j] += line[j] * factor
