"""Reading weights files: a sink that goes on hears of everything, one that refuses of the first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctcli.errors import CtcliError
from ctcli.storage.local import list_local
from ctcli.storage.problems import Problem, Refusing
from ctcli.storage.weights import read_weights
from tests.helpers.checkpoints import array, write_checkpoint, write_index

SHARDS = {f"model-0000{n}-of-00003.safetensors": {f"{n}.weight": array(2, 2)} for n in (1, 2, 3)}
FIRST, SECOND, THIRD = SHARDS


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A checkpoint with a missing file and a truncated one."""
    folder = write_checkpoint(tmp_path, SHARDS)
    (folder / FIRST).unlink()
    (folder / SECOND).write_bytes(b"x")
    return folder


def test_a_collecting_sink_hears_of_everything(damaged: Path) -> None:
    problems: list[Problem] = []
    weights = read_weights("src", list_local(damaged).files, problems.extend)
    assert [(problem.kind, problem.where) for problem in problems] == [
        ("index", FIRST),
        ("file", SECOND),
    ]
    assert not weights.is_complete
    assert [file.file.name for file in weights.files] == [THIRD]


def test_a_refusing_sink_stops_at_the_first_kind(damaged: Path) -> None:
    with pytest.raises(CtcliError) as caught:
        read_weights("src", list_local(damaged).files, Refusing())
    assert len(caught.value.problems) == 1
    assert FIRST in caught.value.problems[0]


def test_stale_tensors_are_warnings(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, SHARDS)
    write_index(folder, {"1.weight": FIRST, "3.weight": THIRD})
    write_checkpoint(
        folder, {THIRD: {"3.weight": array(2, 2), "1.weight": array(2, 2)}}, index=False
    )
    refusing, problems = Refusing(), list[Problem]()
    weights = read_weights("src", list_local(folder).files, refusing)
    assert [*weights.shards[1].tensors] == ["3.weight"]
    assert len(refusing.warnings) == 1
    assert "'1.weight' is left out" in refusing.warnings[0]
    read_weights("src", list_local(folder).files, problems.extend)
    assert [re.split(" and in |, and there are ", problem.message)[0] for problem in problems] == [
        "the name says that there are 3 such files",
        f"it lies both in {FIRST}",
        f"{THIRD} holds it, and model.safetensors.index.json does not say so.",
    ]
