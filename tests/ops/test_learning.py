"""Rotations learned from rows: the loss falls, and every machine learns the same."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ctcli.ops.bits import from_floats
from ctcli.ops.exact import inverse, precise_product, product, row_sums
from ctcli.ops.learning import Learner, differentiated, group_of, learning_bytes, normalise

RANDOM = np.random.RandomState(0)
NONE = np.zeros((0, 512), np.float16)


def held_of(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return normalise(from_floats(rows.astype(np.float32), "BF16"))


def test_products_do_not_depend_on_the_order_of_sums() -> None:
    a, b = RANDOM.randn(600, 384), RANDOM.randn(384, 100)
    mixed = RANDOM.permutation(384)
    found = product(a, b)
    assert np.array_equal(found, product(a[:, mixed], b[mixed]))
    assert not np.array_equal(a @ b, a[:, mixed] @ b[mixed])  # else nothing is shown
    with ThreadPoolExecutor(3) as threads:
        assert np.array_equal(found, product(a, b, threads))
        assert np.array_equal(precise_product(a, b), precise_product(a, b, threads))
    assert np.abs(found - a @ b).max() < 1e-3
    assert np.abs(precise_product(a, b) - a @ b).max() < 1e-9


@pytest.mark.parametrize("size", [1, 5, 33, 200])
def test_inverses(size: int) -> None:
    skew = RANDOM.randn(size, size)
    matrix = np.eye(size) + skew - skew.T
    assert np.abs(inverse(matrix.copy()) @ matrix - np.eye(size)).max() < 1e-2


@pytest.mark.parametrize("length", [1, 2, 7, 128])
def test_row_sums(length: int) -> None:
    x = RANDOM.randn(3, 2, length)
    assert np.allclose(row_sums(x), x.sum(-1))


def test_the_derivative_is_that_of_the_loss() -> None:
    y = RANDOM.randn(3, 8)
    y[0, :4] = 0  # of a group of zeros it is zero
    expected, step = np.empty_like(y), 1e-6
    for place in np.ndindex(y.shape):
        there = [y.copy(), y.copy()]
        there[0][place] += step
        there[1][place] -= step
        more, less = (differentiated(each, 4) for each in there)
        expected[place] = (more - less) / (2 * step)
    expected[0, :4] = 0
    found = y.copy()
    differentiated(found, 4)
    assert np.allclose(found, expected, atol=1e-5)


def test_learning_makes_groups_even(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = RANDOM.randn(512, 64).astype(np.float32)
    rows[:, 5] *= 20
    rows[::3] += 5 * RANDOM.randn(64)
    held = held_of(rows)
    advanced: list[int] = []
    q = Learner(16, 30, 0).learn(held, NONE[:, :64], advanced.append)
    assert advanced == [held.nbytes] * 30
    assert np.abs(q @ q.T - np.eye(64)).max() < 1e-11
    before, after = (np.abs((held @ m).reshape(-1, 16)).max(1) ** 2 for m in (np.eye(64), q))
    assert after.mean() < 0.8 * before.mean()
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert np.array_equal(q, Learner(16, 30, 0).learn(held, NONE[:, :64], advanced.append))


def test_learning_makes_groups_of_columns_even() -> None:
    columns = RANDOM.randn(512, 64)
    columns[:, 5] *= 1 + 20 * (np.arange(512) % 16 == 3)  # one large weight in each group of a row
    held = held_of(columns)
    q = Learner(16, 30, 0).learn(NONE[:, :64], held, lambda _: None)
    written = [(held @ m).T.reshape(64, -1, 16) for m in (np.eye(64), q)]
    before, after = (np.abs(each).max(2) ** 2 for each in written)
    assert after.mean() < 0.8 * before.mean()


@pytest.mark.parametrize(("rows", "size"), [(4096, 256), (300, 384)])
def test_it_holds_what_it_says(rows: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("ctcli.ops.learning._SLAB", 1)  # four slabs, as at 2,048 columns
    held = held_of(RANDOM.randn(rows, size))
    columns, held = held[: rows // 64 * 16], held[rows // 64 * 16 :]
    Learner(16, 1, 0).learn(held, columns, lambda _: None)  # what is loaded once does not count
    tracemalloc.start()
    try:
        Learner(16, 2, 0).learn(held, columns, lambda _: None)
        peak = tracemalloc.get_traced_memory()[1] + held.nbytes + columns.nbytes
    finally:
        tracemalloc.stop()
    assert 0.7 * learning_bytes(rows, size) < peak <= learning_bytes(rows, size)


def test_slabs_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = held_of(RANDOM.randn(2500, 16))
    columns = held_of(RANDOM.randn(800, 16))
    slabs = Learner(16, 1, 0).learn(rows, columns, lambda _: None)
    monkeypatch.setattr("ctcli.ops.learning._LEAST_ROWS", 1)
    monkeypatch.setattr("ctcli.ops.learning._SLAB", 16 * 100)
    again = Learner(16, 1, 0).learn(rows, columns, lambda _: None)
    assert np.allclose(slabs, again, atol=1e-6)


def test_nothing_to_learn_from() -> None:
    for rows in (np.zeros((0, 6), np.float32), np.zeros((5, 6), np.float32)):
        assert np.array_equal(
            Learner(2, 2, 0).learn(held_of(rows), NONE[:, :6], lambda _: None), np.eye(6)
        )


@pytest.mark.parametrize(("size", "group"), [(2048, 128), (576, 64), (32, 32), (257, 1)])
def test_groups(size: int, group: int) -> None:
    assert group_of(size) == group
