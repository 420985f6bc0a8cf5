"""Rotary position embedding (https://arxiv.org/abs/2104.09864): row orders and angle tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats32 = NDArray[np.float32]


def interleave_halves(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """From half-split order (i and i + head_dim/2 rotate together) to neighbours (2i and 2i + 1).

    Args:
        rows: [heads * head_dim, columns] of a query or key projection, of any dtype.
        head_dim: rows of a head, even.

    Returns:
        A new array of the same shape and dtype.
    """
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def angle_tables(positions: int, head_dim: int, base: float) -> tuple[Floats32, Floats32]:
    """Cosines and sines of position * base ** (-2i / head_dim), the angle rounded to float32.

    Both are computed in float64 and rounded. Libraries that differ in the last bit of float64 give
    the same table but for one value in 10**8 or so.

    Returns:
        Two tables [positions, head_dim / 2] float32.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = np.power(base, -exponents).astype(np.float32)
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
