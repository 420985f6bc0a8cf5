"""What loads no torch: the commands as they are run, and that other devices give the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import file_hashes
from tests.helpers.quantizing import run_quantize
from tests.helpers.tiny_models import make

PROGRAM = """
import sys
from ctcli.cli import app
try:
    app()
except SystemExit as end:
    print(end.code or 0, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("fuse-norms",),
        ("fuse-norms", "--dtype", "float32"),
        ("quantize", "--scheme", "FP8_DYNAMIC"),
        ("quantize", "--scheme", "W8A8"),
        ("quantize", "--scheme", "MXFP4A16", "--observer", "mse"),
        ("quantize", "--scheme", "W4A16_ASYM", "--on-indivisible", "smaller-group"),
        ("quantize", "--scheme", "W4A16", "--on-indivisible", "smaller-group"),
        ("quantize", "--scheme", "FP8_BLOCK", "--compute-dtype", "weight"),
        ("quantize", "--bits", "8", "--type", "float", "--strategy", "group", "--group-size", "32"),
        ("rotate", "--rotations", "R1,R2,R4", "--dry-run"),
    ],
)
def test_no_torch_is_loaded(words: tuple[str, ...], pylm: Path, tmp_path: Path) -> None:
    command, *options = words
    every = [command, str(pylm), str(tmp_path / "out"), "--quiet", *options]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *every], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 False"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("preset", ["FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W4A16", "W3A16"])
def test_weights_are_the_same_with_torch(preset: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Whole checkpoints; test_schemes.py compares any values, and rows in any blocks."""
    source = make("llama", tmp_path / "source", dtype=dtype)
    without = run_quantize(source, tmp_path / "without", preset, on_indivisible="smaller-group")
    with_torch = run_quantize(
        source, tmp_path / "with", preset, on_indivisible="smaller-group", device="cpu:0"
    )
    assert file_hashes(tmp_path / "without") == file_hashes(tmp_path / "with")
    # Both sum squares in float32, each in an order of its own.
    assert without.errors == pytest.approx(with_torch.errors, rel=1e-5)
