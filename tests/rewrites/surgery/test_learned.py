"""Learned rotations: exact, better than where they begin, the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ctcli.checkpoint.value import ROTATIONS_NAME
from ctcli.errors import CtcliError
from ctcli.ops.bits import to_floats
from ctcli.options import OptionError
from ctcli.rewrites.surgery.learning import Learning
from ctcli.rewrites.surgery.options import RotateOptions
from ctcli.rewrites.surgery.rotate import rotate
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes
from tests.helpers.operating import run_rotate, run_steps
from tests.helpers.tiny_models import EXACT, Models

FEW: dict[str, Any] = {"transform_type": "learned", "steps": 2}


def weights(folder: Path) -> dict[str, str]:
    """Hashes of the weights files of a folder."""
    hashes = file_hashes(folder)
    return {name: digest for name, digest in hashes.items() if Path(name).match("model*.s*")}


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "phi3", "deepseek_v3"])
def test_the_model_stays_the_same(name: str, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name)
    out = run_rotate(model.folder, tmp_path / "out", **FEW)
    assert model.error(out) <= EXACT
    matrices = load_file(out / ROTATIONS_NAME)
    assert {"R1"} < matrices.keys()
    for matrix in matrices.values():
        assert np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < 1e-5


def test_bytes_are_the_same_for_all_workers_and_from_the_file(tiny: Models, tmp_path: Path) -> None:
    source = tiny("llama").folder
    one, many = (run_rotate(source, tmp_path / str(n), n, **FEW) for n in (1, 4))
    assert file_hashes(one) == file_hashes(many)
    again = run_rotate(source, tmp_path / "again", rotation_file=one / ROTATIONS_NAME)
    assert weights(again) == weights(one)


def test_it_learns_from_what_earlier_steps_made(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    learned = {"use": "rotate", **FEW}
    out = run_steps(model.folder, tmp_path / "out", {"use": "equalize"}, learned)
    assert model.error(out) <= EXACT
    plain = load_file(run_rotate(model.folder, tmp_path / "plain", **FEW) / ROTATIONS_NAME)
    assert not np.array_equal(load_file(out / ROTATIONS_NAME)["R1"], plain["R1"])


def test_groups_are_more_even_than_behind_hadamard(pylm: Path) -> None:
    options = RotateOptions(rotations=("R1",), transform_type="learned", steps=5)
    checkpoint, report = rotate(open_checkpoint(str(pylm)), options)
    (preparation,) = checkpoint.preparations
    assert isinstance(preparation, Learning)
    advanced: list[int] = []
    preparation.run(advanced.append)
    assert sum(advanced) == preparation.nbytes
    learned = preparation.rotations["R1"]
    rows = to_floats(learned.rows.read(), "BF16", np.float64)
    hadamard, ours = (
        (np.abs(each.apply(rows).reshape(-1, 128)).max(1) ** 2).mean()
        for each in (learned.start, learned.rotation)
    )
    assert ours < 0.97 * hadamard
    said = dict(report.changes)["R1"]
    assert "learned in 5 steps from 7,680 rows and 3,584 columns of 256" in said


def test_a_dry_run_learns_nothing(tiny: Models, tmp_path: Path, ctcli: Ctcli) -> None:
    words = ("--transform-type", "learned", "--steps", "100000", "--dry-run")
    told = ctcli("rotate", tiny("llama").folder, tmp_path / "out", *words)
    assert told.returncode == 0, told.stderr
    assert "3 matrices before the run" in told.stdout


@pytest.mark.parametrize("where", [(), ("--part", "1/2"), ("--cluster", "local:1")], ids=" ".join)
def test_too_little_memory_is_refused_beforehand(
    where: tuple[str, ...], pylm: Path, tmp_path: Path, ctcli: Ctcli
) -> None:
    words = ("--transform-type", "learned", "--rotations", "R1", "--max-memory", "16MB")
    told = ctcli("rotate", pylm, tmp_path / "out", *words, *where)
    assert told.returncode == 1
    assert "--max-memory: learning rotations needs" in told.stderr
    assert "Give a larger --max-memory." in told.stderr
    assert not (tmp_path / "out").exists()


def test_later_steps_leave_the_matrices_out(tiny: Models, tmp_path: Path, ctcli: Ctcli) -> None:
    source = run_rotate(tiny("llama").folder, tmp_path / "rotated", rotations=("R2",), **FEW)
    told = ctcli("reindex", source, tmp_path / "out")
    assert "left out" not in told.stderr
    assert not (tmp_path / "out" / ROTATIONS_NAME).exists()


def test_r1_of_a_layer_norm(tiny: Models) -> None:
    checkpoint = open_checkpoint(str(tiny("starcoder2").folder))
    with pytest.raises(CtcliError, match="R1 cannot be learned: a LayerNorm subtracts the mean"):
        rotate(checkpoint, RotateOptions(transform_type="learned"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 5}, "--steps: it would have no effect: only --transform-type learned"),
        ({"transform_type": "learned", "block_size": 8}, "--block-size: it would have no effect"),
        ({"transform_type": "learned", "randomize": True}, "--randomize: it would have no effect"),
    ],
)
def test_options_without_effect(options: dict[str, object], words: str) -> None:
    with pytest.raises((CtcliError, OptionError), match=words):
        RotateOptions(**options)  # type: ignore[arg-type]
