"""Rotary position embedding (https://arxiv.org/abs/2104.09864): row orders and angle tables."""

from __future__ import annotations

import torch
from torch import Tensor


def interleave_halves(rows: Tensor, head_dim: int) -> Tensor:
    """From half-split order (i and i + head_dim/2 rotate together) to neighbours (2i and 2i + 1).

    Args:
        rows: [heads * head_dim, columns] of a query or key projection.
        head_dim: rows of a head, even.

    Returns:
        The same shape and dtype.
    """
    heads = rows.view(-1, 2, head_dim // 2, rows.shape[1])
    return heads.transpose(1, 2).reshape(rows.shape)


def angle_tables(positions: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position * base ** (-2i / head_dim), the angle rounded to float32.

    Returns:
        Two tensors [positions, head_dim / 2] float32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = (base**-exponents).to(torch.float32)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    angles = angles.to(torch.float64)
    return angles.cos().to(torch.float32), angles.sin().to(torch.float32)
