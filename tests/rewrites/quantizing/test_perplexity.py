"""transformers runs what quantize writes, and the bundled model stays as good as its bits allow."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ctcli.schemes.presets import PRESETS
from tests.helpers.operating import run_fuse_norms, run_rotate
from tests.helpers.quantizing import run_quantize

SWEEP = pytest.mark.sweep
WINDOWS, WINDOW = 8, 512
# How far the perplexity may move: what was measured on these few windows, and half as much again.
# Eight bits cost less than a percent, four bits one to three; four-bit activations and two-bit
# weights without calibration cost what they cost.
BOUNDS = dict.fromkeys(PRESETS, 0.01) | {
    **dict.fromkeys(("W4A16", "W4A16_ASYM", "W4A8", "W4AFP8", "NVFP4A16", "MXFP4A16"), 0.03),
    **dict.fromkeys(("W3A16", "W3A8"), 0.1),
    **dict.fromkeys(("NVFP4", "MXFP4"), 0.1),
    **dict.fromkeys(("W2A16", "W2A8"), 1.4),
    "W4A4": 0.22,
    "W3A4": 0.32,
    "W2A4": 2.5,
}
# One preset of each numeric format; bytes of all are compared elsewhere.
EACH_FORMAT = ("FP8_BLOCK", "W8A8", "W4A16_ASYM", "NVFP4", "MXFP4")
TYPES = ("hadamard", "random-hadamard", "random-matrix")
STREAM, HEADS = ("R1",), ("R2",)
EACH_ROTATION = [(STREAM, TYPES[0]), (HEADS, TYPES[1]), ((*STREAM, *HEADS), TYPES[2])]
EVERY_ROTATION = itertools.product((STREAM, HEADS, (*STREAM, *HEADS)), TYPES)
# down_proj has 704 columns, and transformers quantizes activations of FP8_BLOCK in whole 128s.
IGNORED = {"FP8_BLOCK": ("re:.*down_proj",)}


def python_source() -> bytes:
    """Text that the bundled model has not seen.

    It was trained on the standard library without idlelib, which is not always installed.
    """
    idlelib = importlib.util.find_spec("idlelib")
    folders = idlelib.submodule_search_locations if idlelib else None
    paths = sorted(Path(folders[0]).glob("*.py")) if folders else [Path(argparse.__file__)]
    return b"".join(path.read_bytes() for path in paths)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """[windows, length] bytes of Python source, which are the model's tokens."""
    text = python_source()
    return torch.tensor(list(text[: WINDOWS * WINDOW])).view(WINDOWS, WINDOW)


def load(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval()


@torch.no_grad()
def perplexity(folder: Path, tokens: Tensor) -> float:
    logits = load(folder)(tokens).logits.float()
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return math.exp(loss.item())


@pytest.fixture(scope="module")
def unquantized(pylm: Path, tokens: Tensor) -> float:
    return perplexity(pylm, tokens)


@pytest.fixture(scope="module")
@torch.no_grad()
def input_scales(
    pylm: Path, tokens: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Files of static scales, from the largest inputs that each linear sees."""
    model, largest = load(pylm), dict[str, Tensor]()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: largest.update({name: inputs[0].abs().max().float()})
            )
    model(tokens)
    folder = tmp_path_factory.mktemp("scales")
    fp8 = {f"{name}.input_scale": (amax / 448).view(1) for name, amax in largest.items()}
    save_file(fp8, folder / "FP8")
    fp4 = {f"{n}.input_global_scale": (448 * 6 / amax).view(1) for n, amax in largest.items()}
    save_file(fp4, folder / "NVFP4")
    return {"FP8": folder / "FP8", "NVFP4": folder / "NVFP4"}


def swept(every: Iterable[Any], some: Collection[Any]) -> list[Any]:
    """All values, those beyond `some` for the sweep."""
    return [value if value in some else pytest.param(value, marks=SWEEP) for value in every]


@pytest.mark.parametrize("preset", swept(PRESETS, EACH_FORMAT))
def test_perplexity_stays_near_that_of_the_source(
    preset: str,
    pylm: Path,
    tmp_path: Path,
    tokens: Tensor,
    unquantized: float,
    input_scales: dict[str, Path],
) -> None:
    run_quantize(
        pylm,
        tmp_path / "out",
        preset,
        on_indivisible="smaller-group",
        ignore=IGNORED.get(preset, ()),
        input_scales=input_scales.get(preset),
    )
    rise = perplexity(tmp_path / "out", tokens) / unquantized - 1
    assert abs(rise) <= BOUNDS[preset]


@pytest.mark.parametrize("rotation", swept(EVERY_ROTATION, EACH_ROTATION), ids=str)
def test_rotations_leave_perplexity_alone(
    rotation: tuple[tuple[str, ...], str],
    pylm: Path,
    tmp_path: Path,
    tokens: Tensor,
) -> None:
    rotations, transform_type = rotation
    wide = run_fuse_norms(pylm, tmp_path / "wide", dtype="float32")
    rotated = run_rotate(
        wide, tmp_path / "rotated", rotations=rotations, transform_type=transform_type, seed=1
    )
    # Four digits and more: float32 rounding over four layers.
    assert perplexity(rotated, tokens) == pytest.approx(perplexity(wide, tokens), rel=2e-5)
