"""Angles and row orders of RoPE, without torch as with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ctcli.ops.rope import angle_tables, interleave_halves


def torch_tables(positions: int, head_dim: int, base: float) -> list[bytes]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = (base**-exponents).to(torch.float32)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies).double()
    return [table.to(torch.float32).numpy().tobytes() for table in (angles.cos(), angles.sin())]


@pytest.mark.parametrize("head_dim", [2, 6, 64, 80, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_tables_are_those_of_torch(head_dim: int, base: float) -> None:
    tables = angle_tables(4096, head_dim, base)
    assert [table.tobytes() for table in tables] == torch_tables(4096, head_dim, base)


def test_tables_are_cosines_and_sines_of_angles_in_float32() -> None:
    cosines, sines = angle_tables(50, 8, 10000.0)
    for i in range(4):
        frequency = np.float32(10000.0 ** (-2 * i / 8))
        for position in range(50):
            angle = float(np.float32(position) * frequency)
            assert cosines[position, i] == np.float32(math.cos(angle))
            assert sines[position, i] == np.float32(math.sin(angle))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32])
def test_halves_are_interleaved_head_by_head(dtype: type[np.generic]) -> None:
    rows = np.arange(2 * 6 * 3).reshape(12, 3).astype(dtype)
    found = interleave_halves(rows, 6)
    order = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert found.dtype == dtype
    assert found.flags.c_contiguous
    assert np.array_equal(found, rows[order])
    assert np.array_equal(interleave_halves(rows[:, 1:], 6), rows[order, 1:])
