"""What ctcli makes stays as it was: every file by its hash, rounded sums within one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.frozen import FROZEN, STEPS, jobs, outcome
from tests.helpers.frozen_sources import make_sources

JOBS = jobs()
EXPECTED: dict[str, Any] = json.loads(FROZEN.read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


def test_every_job_is_frozen() -> None:
    assert EXPECTED.keys() == JOBS.keys()


@pytest.mark.parametrize("name", JOBS)
def test_the_output_is_what_it_was(name: str, sources: Mapping[str, Path], tmp_path: Path) -> None:
    found, expected = outcome(JOBS[name], sources, tmp_path), EXPECTED[name]
    assert found.keys() == expected.keys()
    for path, kept in expected.items():
        if isinstance(kept, str):
            assert found[path] == kept, f"{path}: other bytes"
        else:
            assert_near(found[path], kept)


def assert_near(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Norms and inner products of tensors differ by less than one step of their dtype.

    Where every element moves by a step of either sign, an inner product with signs moves by a step
    times the norm, or less; another matrix or a lost sign moves it by the norm itself.
    """
    assert list(found) == list(expected)
    for name, (dtype, shape, norm, *products) in expected.items():
        assert found[name][:2] == [dtype, shape], name
        bound = STEPS[dtype] * norm
        assert found[name][2:] == pytest.approx([norm, *products], rel=0, abs=bound), name
