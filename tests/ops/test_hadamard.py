"""Hadamard matrices: every known order is one, in integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.transform.utils.hadamard import (
    _fetch_hadamard_divisor,
    deterministic_hadamard_matrix,
)

from ctcli.ops.hadamard import LARGEST_ORDER, hadamard, paley_one, sylvester, with_ones_first

# Multiples of 4 that the constructions do not reach.
UNREACHED = [
    260, 268, 292, 324, 356, 372, 404, 412, 436, 452, 476, 508, 520, 532, 536, 584, 596, 604, 612,
    652, 668, 712, 716, 732, 756, 764, 772, 808, 836, 852, 872, 876, 892, 904, 932, 940, 952, 956,
    964, 980, 988, 996, 1004, 1012, 1016,
]  # fmt: skip
# Bundled with compressed-tensors in another form; 32 is the power of two that is Paley's there.
OTHERS = {20, 32, 52, 100, 188, 208, 232, 236, 244, 248}


def test_every_order_is_a_hadamard_matrix_and_none_is_lost() -> None:
    unreached = []
    for order in (1, 2, *range(4, LARGEST_ORDER + 1, 4)):
        matrix = hadamard(order)
        if matrix is None:
            unreached.append(order)
            continue
        assert matrix.dtype == np.int8
        assert matrix.shape == (order, order)
        assert (np.abs(matrix) == 1).all(), order
        # Sums of up to 1024 products of signs are exact in float32.
        product = matrix.astype(np.float32) @ matrix.astype(np.float32).T
        assert np.array_equal(product, order * np.eye(order)), order
    assert unreached == UNREACHED


@pytest.mark.parametrize("order", [-4, 0, 3, 6, 10, 1028, 2044])
def test_other_orders_have_none(order: int) -> None:
    assert hadamard(order) is None


def test_sylvester_counts_common_bits() -> None:
    expected = [[(-1) ** (i & j).bit_count() for j in range(64)] for i in range(64)]
    assert sylvester(64).tolist() == expected


@pytest.mark.parametrize("order", [2**k for k in range(12)])
def test_powers_of_two_are_the_deterministic_matrix_of_compressed_tensors(order: int) -> None:
    theirs = deterministic_hadamard_matrix(order, torch.int8).numpy()
    known = hadamard(order)
    assert known is not None
    assert np.array_equal(known, theirs)
    assert np.array_equal(sylvester(order), theirs)


def test_bundled_matrices_of_compressed_tensors_agree_but_for_ten() -> None:
    different = set()
    for order in (1, 2, *range(4, 257, 4)):
        theirs = _fetch_hadamard_divisor(order, torch.int8)
        ours = hadamard(order)
        assert theirs is not None
        assert ours is not None
        assert theirs.shape == ours.shape
        if not np.array_equal(theirs.numpy(), ours):
            different.add(order)
    assert different == OTHERS
    paley = paley_one(32)
    assert paley is not None
    assert np.array_equal(paley, _fetch_hadamard_divisor(32, torch.int8).numpy())


@pytest.mark.parametrize("order", [2, 12, 28, 172, 188, 224])
def test_ones_first_is_the_same_matrix_but_for_signs_of_rows(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    turned = with_ones_first(matrix)
    assert (turned[:, 0] == 1).all()
    product = turned.astype(np.float32) @ matrix.astype(np.float32).T
    assert np.array_equal(np.abs(product), order * np.eye(order))
