"""Rotations: products of small factors do what the dense matrix does."""

from __future__ import annotations

from functools import reduce
from math import prod, sqrt

import numpy as np
import pytest
import torch
from compressed_tensors.transform.utils.hadamard import (
    deterministic_hadamard_matrix,
    random_hadamard_matrix,
)
from torch import Tensor

from ctcli.ops.draws import Draws
from ctcli.ops.kronecker import balanced_factors, merged, prime_factors, transposed_times
from ctcli.ops.rotation import Rotation, from_matrix
from ctcli.ops.transforms import TRANSFORM_TYPES, make_rotation, seed_for

# Small ones of each kind: 1, powers of two, Paley, Williamson, doubled, two Hadamard factors, an
# odd part without one, odd, two random factors.
SIZES = (1, 2, 6, 20, 32, 64, 92, 96, 144, 185, 428)
# Hidden, intermediate and head sizes of published models.
MODEL_SIZES = (
    64, 80, 96, 128, 256, 576, 1152, 1536, 2048, 2304, 2880, 3072, 3584, 4096, 5120, 5632, 6144,
    6912, 8192, 8960, 11008, 13696, 13824, 14336, 18944, 21504, 25600, 27648, 28672, 29568, 36864,
)  # fmt: skip
BOUND = 1e-12  # float64: some hundred operations an element on values of about 1


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(rotation: Rotation) -> Tensor:
    """Q from the definition, with dense Kronecker products."""
    one = torch.ones(1, 1, dtype=torch.float64)
    steps = [
        reduce(torch.kron, map(torch.from_numpy, step), one)
        if isinstance(step, tuple)
        else torch.diag(torch.from_numpy(step))
        for step in rotation.steps
    ]
    block: Tensor = reduce(torch.matmul, steps)
    return block_diagonal(block, rotation.repeats)


def as_matrix(rotation: Rotation, *rows: int) -> Tensor:
    return torch.from_numpy(rotation.matrix(*rows))


def unnormalised(rotation: Rotation, *rows: int) -> Tensor:
    return torch.from_numpy(rotation.unnormalised(*rows))


def block_diagonal(block: Tensor, times: int) -> Tensor:
    return torch.kron(torch.eye(times, dtype=torch.float64), block)


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float((a - b).abs().max())


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transform_type", TRANSFORM_TYPES)
def test_both_sides_are_the_dense_product(transform_type: str, size: int, keeps_ones: bool) -> None:
    rotation = make_rotation(transform_type, size, Draws(1), keeps_ones=keeps_ones)
    q = dense(rotation)
    assert error(q @ q.T, torch.eye(size, dtype=torch.float64)) < BOUND
    if keeps_ones:
        assert error(q.sum(1), torch.ones(size, dtype=torch.float64)) < BOUND
    x, w = normal(37, size), normal(size, 41)
    assert error(rotation.apply(x), x @ q) < BOUND
    assert error(rotation.apply_left(w), q.T @ w) < BOUND
    assert error(rotation.inverse.apply(x), x @ q.T) < BOUND
    assert error(rotation.inverse.apply_left(w), q @ w) < BOUND
    assert error(as_matrix(rotation), q) < BOUND
    assert (
        error(as_matrix(rotation, size // 3, size // 2 + 1), q[size // 3 : size // 2 + 1]) < BOUND
    )
    assert rotation.size == rotation.block_size == size


@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize("transform_type", TRANSFORM_TYPES)
def test_heads_and_blocks_are_a_block_diagonal_matrix(transform_type: str, size: int) -> None:
    whole = make_rotation(transform_type, 5 * size, Draws(2), block_size=size)
    head = make_rotation(transform_type, size, Draws(2))
    q = block_diagonal(dense(head), 5)
    x, w = normal(7, 5 * size), normal(5 * size, 9)
    bias = normal(5 * size, 1)
    # -1, +1 and the zeros beside the blocks
    values = unnormalised(head.repeated(5), 1, 2)[0].tolist()
    assert not head.is_hadamard or set(values) == {-1.0, 0.0, 1.0}
    assert head.repeated(5).repeated(3).size == 15 * size
    for rotation in (whole, head.repeated(5), head.repeated(5).inverse.inverse):
        assert rotation.size == 5 * size
        assert error(rotation.apply(x), x @ q) < BOUND
        assert error(rotation.apply_left(w), q.T @ w) < BOUND
        assert error(rotation.apply_left(bias), q.T @ bias) < BOUND
        assert error(rotation.inverse.apply(x), x @ q.T) < BOUND
        assert error(as_matrix(rotation, size - 3, size + 5), q[size - 3 : size + 5]) < BOUND


def test_many_rows_and_views_are_the_dense_product() -> None:
    rotation = make_rotation("random-hadamard", 144, Draws(3))
    q = dense(rotation)
    x = normal(144, 4001)
    assert error(rotation.apply(x.T), x.T @ q) < BOUND
    assert error(rotation.apply(x.T.contiguous()), x.T @ q) < BOUND
    assert error(rotation.apply_left(x[:, 1000:3000]), q.T @ x[:, 1000:3000]) < BOUND
    assert rotation.apply(x.T).is_contiguous()


def test_tensors_on_other_devices_are_turned_by_the_same_products() -> None:
    rotation = make_rotation("random-hadamard", 144, Draws(3))
    x = normal(5, 288)
    signs, factors = (step for step in rotation.steps)
    tensors = [torch.from_numpy(factor) for factor in factors]
    turned = transposed_times(tensors, (x.view(10, 144) * torch.from_numpy(signs)).unsqueeze(2))
    assert error(turned.view(5, 288), rotation.repeated(2).apply(x)) < BOUND
    for turn in (rotation.repeated(2).apply, rotation.repeated(2).inverse.apply):
        elsewhere = turn(x.to("meta", torch.float32))
        assert (elsewhere.device.type, elsewhere.dtype) == ("meta", torch.float32)
        assert elsewhere.shape == x.shape


# Sylvester's factors alone, in tiles of one and of two passes; beside products, before and behind
# them; products alone; with signs first, last and in between; a block of heads.
CUT = [
    ("hadamard", 2048, None),
    ("hadamard", 640, 128),
    ("random-hadamard", 576, None),
    ("random-hadamard", 896, None),
    ("random-hadamard", 428, None),
    ("random-matrix", 640, None),
]


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("transform_type", "size", "block_size"), CUT)
def test_what_becomes_of_a_row_or_column_does_not_depend_on_the_others(
    transform_type: str,
    size: int,
    block_size: int | None,
    dtype: type[np.floating],
    keeps_ones: bool,
) -> None:
    made = make_rotation(
        transform_type, size, Draws(3), block_size=block_size, keeps_ones=keeps_ones
    )
    x = normal(530, size).numpy().astype(dtype)
    for rotation in (made, made.inverse):
        rows, columns = rotation.apply(x), rotation.apply_left(np.ascontiguousarray(x.T))
        for cuts in ([1], [3, 260], [64, 256, 529], [257, 300]):
            pieces = np.split(x, cuts)
            assert np.concatenate([rotation.apply(p) for p in pieces]).tobytes() == rows.tobytes()
            turned = [rotation.apply_left(p.T) for p in pieces]
            assert np.concatenate(turned, axis=1).tobytes() == columns.tobytes()


def test_a_large_matrix_turns_rows_and_columns_one_by_one_too() -> None:
    """BLAS multiplies by it in float64, and the result is rounded."""
    rotation = from_matrix(torch.linalg.qr(normal(300, 300)).Q)
    x = normal(530, 300).numpy().astype(np.float32)
    rows, columns = rotation.apply(x), rotation.apply_left(np.ascontiguousarray(x.T))
    for cuts in ([1], [3, 260], [64, 256, 529]):
        pieces = np.split(x, cuts)
        assert np.concatenate([rotation.apply(p) for p in pieces]).tobytes() == rows.tobytes()
        turned = [rotation.apply_left(p.T) for p in pieces]
        assert np.concatenate(turned, axis=1).tobytes() == columns.tobytes()


@pytest.mark.parametrize(("transform_type", "size", "block_size"), CUT)
def test_a_block_may_be_replaced_by_its_result(
    transform_type: str, size: int, block_size: int | None
) -> None:
    rotation = make_rotation(transform_type, size, Draws(3), block_size=block_size)
    x = normal(300, size).numpy()
    rows, columns = rotation.apply(x), rotation.apply_left(x.T)
    w = np.ascontiguousarray(x.T)
    assert rotation.apply(x, out=x) is x
    assert rotation.apply_left(w, out=w) is w
    assert np.array_equal(x, rows)
    assert np.array_equal(w, columns)


def test_nothing_is_turned_into_nothing() -> None:
    rotation = make_rotation("random-hadamard", 576, Draws(3))
    assert rotation.apply(np.empty((0, 576))).shape == (0, 576)
    assert rotation.apply_left(np.empty((576, 0), np.float32)).shape == (576, 0)


def test_infinities_are_no_cause_for_a_warning() -> None:
    x = torch.full((2, 64), torch.inf)
    assert not bool(make_rotation("hadamard", 64, Draws(0)).apply(x).isfinite().any())


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("transform_type", TRANSFORM_TYPES)
def test_float32_stays_float32_and_only_rounds(transform_type: str, keeps_ones: bool) -> None:
    rotation = make_rotation(transform_type, 1152, Draws(4), keeps_ones=keeps_ones)
    x = normal(50, 1152)
    # Up to six products of at most 128 terms each: a few roundings of 6e-8 on values of up to 5.
    assert error(rotation.apply(x.float()), rotation.apply(x).float()) < 1e-5
    w = x.T.contiguous()
    assert error(rotation.apply_left(w.float()), rotation.apply_left(w).float()) < 1e-5
    assert x.equal(normal(50, 1152)), "the argument was changed"


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_sizes_of_models_have_a_hadamard_rotation(size: int) -> None:
    for transform_type in ("hadamard", "random-hadamard"):
        rotation = make_rotation(transform_type, size, Draws(5))
        assert rotation.size == size
        assert rotation.is_hadamard
        assert rotation.description.endswith(f"hadamard {size}")
        rows = as_matrix(rotation, size - 3, size)
        assert error(rows.abs(), torch.full_like(rows, 1 / sqrt(size))) < BOUND
        units = torch.zeros_like(rows)
        units[:, -3:] = torch.eye(3)
        assert error(rotation.inverse.apply(rows), units) < BOUND
        assert set(unnormalised(rotation, 0, 1)[0].tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("size", [576, 2304, 13696, 18944, 29568])
@pytest.mark.parametrize("transform_type", TRANSFORM_TYPES)
def test_sizes_of_models_can_keep_the_ones(transform_type: str, size: int) -> None:
    rotation = make_rotation(transform_type, size, Draws(6), keeps_ones=True)
    ones = torch.ones(1, size, dtype=torch.float64)
    assert error(rotation.apply(ones), ones) < BOUND
    assert error(rotation.apply_left(ones.T), ones.T) < BOUND
    rows = normal(2, size)
    assert error(rotation.inverse.apply(rotation.apply(rows)), rows) < BOUND
    centred = rows - rows.mean(1, keepdim=True)
    turned = rotation.apply(rows)
    assert error(rotation.apply(centred), turned - turned.mean(1, keepdim=True)) < BOUND


# Hadamard entries are sums of 2048 random signs over 2048: normal with deviation 1 / sqrt(2048),
# and 4.9 deviations are exceeded by one of a million. Entries of random matrices are products of
# entries of the factors 64 and 32, of which the largest are about four deviations each.
@pytest.mark.parametrize(
    ("transform_type", "largest"),
    [("hadamard", 5.0), ("random-hadamard", 5.0), ("random-matrix", 16.0)],
)
def test_a_rotation_that_keeps_the_ones_mixes(transform_type: str, largest: float) -> None:
    rotation = make_rotation(transform_type, 2048, Draws(7), keeps_ones=True)
    assert not rotation.is_hadamard
    matrix = as_matrix(rotation)
    assert float(matrix.abs().max()) * sqrt(2048) < largest
    assert (error(matrix, matrix.T) < BOUND) == (transform_type != "random-matrix")
    assert float(matrix.square().mean(0).max()) * 2048 < 1 + BOUND


@pytest.mark.parametrize("size", [2**k for k in range(12)])
def test_powers_of_two_are_the_matrices_of_compressed_tensors(size: int) -> None:
    theirs = deterministic_hadamard_matrix(size, torch.float64)
    assert torch.equal(unnormalised(make_rotation("hadamard", size, Draws(None))), theirs)
    theirs = random_hadamard_matrix(size, torch.float64, gen=torch.Generator())
    ours = make_rotation("random-hadamard", size, Draws(None))
    assert torch.equal(unnormalised(ours), theirs)


# K is 144, 184, 148, 172, 224 and 216 here; it is 224 for 14336, 148 for 18944, 172 for 11008.
@pytest.mark.parametrize("size", [576, 736, 296, 344, 448, 896, 108, 432])
@pytest.mark.parametrize("seed", [None, 11])
def test_other_sizes_are_the_random_hadamard_of_compressed_tensors(
    size: int, seed: int | None
) -> None:
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    theirs = random_hadamard_matrix(size, torch.float64, gen=generator)
    ours = make_rotation("random-hadamard", size, Draws(seed))
    assert torch.equal(unnormalised(ours), theirs)


def test_sizes_that_share_a_generator_take_it_in_turn() -> None:
    ours, theirs = Draws(None), torch.Generator()
    for size in (64, 128, 12):
        rotation = make_rotation("random-hadamard", size, ours)
        assert torch.equal(
            unnormalised(rotation), random_hadamard_matrix(size, torch.float64, gen=theirs)
        )


def test_an_odd_part_without_hadamard_factors_is_orthogonal_and_said_to_be() -> None:
    words = {
        6: "orthogonal 3 (x) hadamard 2",
        231 * 2: "orthogonal 21 (x) orthogonal 11 (x) hadamard 2",
        67 * 128: "orthogonal 67 (x) hadamard 128",
        185: "orthogonal 37 (x) orthogonal 5",
    }
    for size, expected in words.items():
        rotation = make_rotation("hadamard", size, Draws(8))
        assert rotation.description == expected
        assert not rotation.is_hadamard
        other = make_rotation("hadamard", size, Draws(9))
        assert error(as_matrix(rotation, 0, 2), as_matrix(other, 0, 2)) > 0.001


def test_random_factors_take_both_signs_and_mix() -> None:
    entries = np.stack(
        [make_rotation("random-matrix", 40, Draws(seed)).matrix().diagonal() for seed in range(50)]
    )
    # 2000 entries of uniform matrices: mean 0, variance 1 / 40; the bound is 4.5 deviations.
    assert abs(float(entries.mean())) < 4.5 / sqrt(40 * 2000)
    largest = np.abs(make_rotation("random-matrix", 2048, Draws(0)).matrix()).max()
    assert float(largest) * sqrt(2048) < 16  # the largest of each factor: about four deviations


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("transform_type", ["random-hadamard", "random-matrix"])
def test_a_seed_gives_the_same_matrix_and_another_one_another(
    transform_type: str, keeps_ones: bool
) -> None:
    first, same, other = (
        as_matrix(make_rotation(transform_type, 96, Draws(seed), keeps_ones=keeps_ones))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert error(first, other) > 0.01


def test_each_name_has_a_seed_of_its_own() -> None:
    names = ["R1", *(f"model.layers.{i}.self_attn.R2" for i in range(99))]
    seeds = {seed_for(seed, name) for name in names for seed in (None, 0, 1)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A change would give other checkpoints than the same command did before.
    assert seed_for(0, "R1") == 8937069643833118313


def test_a_given_matrix_is_applied_as_it_is() -> None:
    q = torch.linalg.qr(normal(60, 60)).Q
    rotation = from_matrix(q)
    x = normal(6, 60)
    assert error(rotation.apply(x), x @ q) < BOUND
    assert error(rotation.apply_left(x.T), q.T @ x.T) < BOUND
    assert error(rotation.repeated(2).apply(x.view(3, 120)), (x @ q).view(3, 120)) < BOUND
    assert torch.equal(as_matrix(from_matrix(q.float())), q.float().double())


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.eye(4)[:3], r"square matrix, not of shape \[3, 4\]"),
        (torch.ones(0, 0), r"square matrix, not of shape \[0, 0\]"),
        (torch.ones(4), r"square matrix, not of shape \[4\]"),
        (torch.eye(4) * 1.001, "identity by up to 2.0e-03"),
        (torch.eye(4).index_fill(1, torch.tensor([2]), torch.nan), "by up to nan"),
        (torch.tensor([[torch.inf, torch.inf], [torch.inf, -torch.inf]]), "by up to nan"),
        (torch.ones(4, 4), "by up to 4.0e"),
    ],
)
def test_a_given_matrix_that_is_no_rotation_is_refused(matrix: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_matrix(matrix)


@pytest.mark.parametrize("size", [32, 65, 128])
def test_another_size_is_an_error(size: int) -> None:
    rotation = make_rotation("hadamard", 64, Draws(0))
    with pytest.raises(ValueError, match=f"{size} coordinates"):
        rotation.apply(normal(4, size))
    with pytest.raises(ValueError, match=f"{size} coordinates"):
        rotation.apply_left(normal(size, 4))


def test_sizes_without_a_fast_rotation_are_refused() -> None:
    for transform_type in TRANSFORM_TYPES:
        with pytest.raises(ValueError, match="size 8248 has the prime factor 1031"):
            make_rotation(transform_type, 8248, Draws(0))
    with pytest.raises(ValueError, match="blocks of 48 do not divide size 64"):
        make_rotation("hadamard", 64, Draws(0), block_size=48)
    assert make_rotation("random-matrix", 8 * 1021, Draws(0)).size == 8168


@pytest.mark.parametrize(
    ("size", "factors"),
    [
        (2048, [8, 16, 16]),
        (576, [12, 12, 4]),
        (3584, [28, 8, 16]),
        (13696, [428, 32]),
        (18944, [148, 8, 16]),
        (29568, [12, 28, 44, 2]),
    ],
)
def test_hadamard_factors_are_those_with_the_least_work(size: int, factors: list[int]) -> None:
    (step,) = make_rotation("hadamard", size, Draws(0)).steps
    assert [factor.shape[0] for factor in step] == factors


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ([8, 8], [64]),
        ([12, 12, 4], [12, 48]),
        ([12, 28, 44, 2], [12, 28, 88]),
        ([12, 2, 2, 2], [96]),
        ([8, 16, 16], [8, 16, 16]),
        ([428, 8], [428, 8]),
        ([], []),
    ],
)
def test_small_last_factors_are_merged(orders: list[int], expected: list[int]) -> None:
    factors = [Draws(order).normal(order) for order in orders]
    found = merged(factors)
    assert [factor.shape[0] for factor in found] == expected
    if 1 < prod(orders) < 5000:  # the dense product of others would not fit into memory
        np.testing.assert_allclose(reduce(np.kron, found), reduce(np.kron, factors), rtol=BOUND)


@pytest.mark.parametrize("limit", [16, 128])
def test_factors_are_few_and_within_the_limit(limit: int) -> None:
    for n in range(1, 3000):
        factors = balanced_factors(n, limit)
        assert reduce(int.__mul__, factors) == n
        assert max(factors) <= max([limit, *prime_factors(n)])
        assert limit ** (len(factors) - 2) < n, "more than one factor too many"
    assert balanced_factors(2048, 16) == (16, 16, 8)
    assert balanced_factors(18944, 128) == (37, 32, 16)
