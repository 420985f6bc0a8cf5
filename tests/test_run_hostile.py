"""`ctcli run`: steps that hinder each other, odd recipes, and weights that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tensor_hashes
from tests.operating import run_steps
from tests.quantizing import config_of
from tests.tiny_models import EXACT, Models, difference, load, logits, make, read

pytestmark = pytest.mark.usefixtures("one_thread")

FUSE = {"use": "fuse-norms"}
FLOAT32 = {**FUSE, "dtype": "float32"}
STREAM = {"use": "rotate", "rotations": ["R1"]}
CENTRE = {**FUSE, "center": True}
FP8 = {"use": "quantize", "scheme": "FP8_DYNAMIC"}


@pytest.mark.parametrize(
    ("name", "step"),
    [("llama", STREAM), ("deepseek_v2", STREAM), ("opt", STREAM), ("opt", CENTRE)],
)
def test_biases_that_an_earlier_step_widened_are_mapped_as_others(
    name: str, step: Mapping[str, Any], tmp_path: Path
) -> None:
    source = make(name, tmp_path / "source", dtype=torch.bfloat16)
    made = logits(load(run_steps(source, tmp_path / "out", FLOAT32, step)))
    assert difference(made, logits(load(source))) <= EXACT


def test_biases_that_an_earlier_step_made_are_widened(tmp_path: Path) -> None:
    source = make("starcoder2_unbiased", tmp_path / "source", dtype=torch.bfloat16)
    _, tensors = read(run_steps(source, tmp_path / "out", FUSE, FLOAT32))
    assert "model.layers.0.mlp.c_proj.bias" in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_matrices_for_the_server_are_declared_as_in_a_chain(tiny: Models, tmp_path: Path) -> None:
    source = tiny("llama").folder
    rotate = {"use": "rotate", "rotations": ["R1", "R4"], "block_size": 32}
    run_steps(source, tmp_path / "rotated", rotate)
    run_steps(tmp_path / "rotated", tmp_path / "chain", FP8)
    run_steps(source, tmp_path / "once", rotate, FP8)
    assert "model.layers.0.mlp.down_proj.R4_input" in config_of(tmp_path / "once")["ignore"]
    assert config_of(tmp_path / "once") == config_of(tmp_path / "chain")
    assert tensor_hashes(tmp_path / "once") == tensor_hashes(tmp_path / "chain")
