"""Draws without torch are the draws of torch."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from ctcli.ops.draws import DEFAULT_SEED, Draws

SEEDS = (None, 0, 1, 42, 2**32, 2**32 + 1, 2**63 - 1, 8937069643833118313, -3)


def generator_of(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    return generator if seed is None else generator.manual_seed(seed)


def theirs(generator: torch.Generator, n: int) -> np.ndarray:
    found: np.ndarray = torch.randn(n, n, generator=generator, dtype=torch.float64).numpy()
    return found


def test_the_default_seed_is_torchs() -> None:
    assert torch.Generator().initial_seed() == DEFAULT_SEED


@pytest.mark.parametrize("seed", SEEDS)
def test_signs_are_those_of_torch_again_and_again(seed: int | None) -> None:
    ours, generator = Draws(seed), generator_of(seed)
    for n in (0, 1, 2, 3, 311, 312, 623, 624, 625, 7168, 1):  # 624 words are made at a time
        drawn = torch.randint(0, 2, (n,), generator=generator, dtype=torch.float64)
        signs = ours.signs(n)
        assert signs.dtype == np.float64
        assert np.array_equal(signs, (drawn * 2 - 1).numpy())


# Both take logarithms, sines and cosines from C libraries that are right to a unit in the last
# place or two; the three factors and the products add up to less than eight.
CLOSE = 8 * 2.0**-52


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 37, 67, 100, 128])
def test_normal_values_are_those_of_torch(n: int, seed: int | None) -> None:
    found = Draws(seed).normal(n)
    assert found.shape == (n, n)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, theirs(generator_of(seed), n), rtol=CLOSE, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_of_all_kinds_follow_each_other_as_in_torch(seed: int | None) -> None:
    """Also the second value of a pair, which waits for the next small draw."""
    ours, generator = Draws(seed), generator_of(seed)
    for n in (1, 5, 3, 4, 1, 2, 33, 3, 3, 1):
        np.testing.assert_allclose(ours.normal(n), theirs(generator, n), rtol=CLOSE, atol=0)
        drawn = torch.randint(0, 2, (n,), generator=generator, dtype=torch.float64)
        assert np.array_equal(ours.signs(n), (drawn * 2 - 1).numpy())


def test_normal_values_are_normal() -> None:
    values = Draws(7).normal(400)
    deviation = 1 / math.sqrt(values.size)
    assert abs(float(values.mean())) < 4.5 * deviation
    assert abs(float(values.var()) - 1) < 4.5 * deviation * math.sqrt(2)


def test_a_rotation_is_made_without_numba_and_applied_without_torch() -> None:
    program = """
import sys
from ctcli.ops.draws import Draws
from ctcli.ops.transforms import TRANSFORM_TYPES, make_rotation
for kind in TRANSFORM_TYPES:
    for keeps_ones in (False, True):
        rotation = make_rotation(kind, 6 * 64, Draws(1), keeps_ones=keeps_ones)
print("numba" in sys.modules)
rotation.unnormalised(0, 2)
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\nFalse\n"
