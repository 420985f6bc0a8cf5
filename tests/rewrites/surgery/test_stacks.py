"""Weights stored transposed, several in one tensor, with heads side by side, a norm behind heads
or a bias of another name: edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.architectures import made
from tests.helpers.operating import run_fuse_norms, run_rotate, run_steps
from tests.helpers.tiny_models import EXACT, difference, load, logits, read

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of transformers' modules
# Model type, config keys, and the rotations that it admits.
MODELS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "bitnet": ({}, ("R2",)),
    "codegen": ({}, ("R1", "R2")),
    "dbrx": ({}, ("R1",)),
    "diffllama": ({}, ("R1", "R2")),
    "falcon": ({"new_decoder_architecture": True, "num_kv_heads": 2}, ("R1", "R2")),
    "gpt2": ({}, ("R1", "R2")),
    "gpt_neox_japanese": ({}, ("R1", "R2")),
    "gpt_oss": ({}, ("R1", "R2")),
    "granitemoe": ({}, ("R1", "R2")),
    "jetmoe": ({}, ("R1", "R2")),
    "llama4_text": ({}, ("R1", "R2")),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same(name: str, tmp_path: Path) -> None:
    more, rotations = MODELS[name]
    source = made(tmp_path / "source", name, tied=False, **more)
    before, (_, tensors) = logits(load(source)), read(source)
    fused = run_fuse_norms(source, tmp_path / "fused")
    rotated = run_rotate(source, tmp_path / "rotated", rotations=rotations)
    at_once = run_steps(
        source,
        tmp_path / "at_once",
        {"use": "fuse-norms", "dtype": "float32"},
        {"use": "rotate", "rotations": list(rotations)},
    )
    for folder in (fused, rotated, at_once):
        assert difference(logits(load(folder)), before) <= EXACT, folder.name
        after = read(folder)[1]
        specs = {n: (t.dtype, t.shape) for n, t in after.items()}
        assert specs == {n: (t.dtype, t.shape) for n, t in tensors.items()}
    changed = read(rotated)[1]
    stacks = [n for n, t in tensors.items() if t.ndim == 3 and "expert" in n]
    for stack in stacks:
        for expert in range(len(tensors[stack])):
            assert not torch.equal(changed[stack][expert], tensors[stack][expert])
