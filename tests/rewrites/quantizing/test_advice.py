"""Warnings of what costs accuracy, where it does, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ctcli.rewrites.quantizing.advice import (
    _LOSSES,
    _MODELS,
    _NEAREST,
    advice,
    measured_loss,
)
from ctcli.schemes.parsing import Overrides, parse_schemes
from ctcli.schemes.presets import preset
from tests.conftest import ROOT, Ctcli

EVEN, FUSED, ROTATED = ({"use": name} for name in ("equalize", "fuse-norms", "rotate"))
REINDEXED = {"use": "reindex"}


@pytest.mark.parametrize(
    ("schemes", "observer", "steps", "words"),
    [
        (["W4A16"], "minmax", [FUSED], ["W4A16: fuse-norms before", "17 to 125 %"]),
        (["W4A16", "NVFP4A16"], "signed", [ROTATED, REINDEXED], ["W4A16, NVFP4A16: rotate before"]),
        (["W4A16"], "minmax", [FUSED, ROTATED], ["W4A16: rotate before", "equalize in its place"]),
        (["W4A16"], "minmax", [EVEN, FUSED], ["W4A16: fuse-norms before"]),
        (["W8A16", "W4A16"], "minmax", [FUSED], ["W4A16: fuse-norms before"]),
        (["W4A16"], "mse", [], ["W4A16: --observer mse cuts", "6 to 72 %"]),
        (["MXFP4A16"], "mse", [], ["MXFP4A16: --observer mse cuts"]),
        (["W3A16", "W2A16"], "minmax", [], ["W3A16, W2A16: --observer signed took"]),
        (["W3A8"], "minmax", [], ["W3A8: --observer mse took", "51 %"]),
        (["W4A16"], "minmax", [], []),
        (["W4A16"], "signed", [EVEN], []),
        (["W4A16"], "pnorm", [FUSED, EVEN], []),
        (["NVFP4A16"], "mse", [], []),
        (["W3A16"], "signed", [], []),
        (["W3A8"], "mse", [], []),
        (["W8A16", "FP8_DYNAMIC"], "mse", [FUSED], []),
        (["W4A4", "NVFP4"], "minmax", [ROTATED], []),
    ],
)
def test_advice(schemes: list[str], observer: Any, steps: list[Any], words: list[str]) -> None:
    found = advice([preset(name) for name in schemes], observer, steps)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_it_is_said_before_anything_is_written(ctcli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    scheme = '{use = "quantize", scheme = "W8A16", group_size = 64}'
    recipe.write_text(f'steps = [{{use = "fuse-norms"}}, {scheme}]')
    quiet = ctcli("run", recipe, pylm, tmp_path / "out", "--dry-run")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    fused = tmp_path / "fused"
    assert ctcli("fuse-norms", pylm, fused).returncode == 0
    options = ("--scheme", "W4A16", "--group-size", "64", "--dry-run", "--log-format", "json")
    told = ctcli("quantize", fused, tmp_path / "out", *options).stderr.splitlines()
    events = [json.loads(line) for line in told]
    (warning,) = (event["message"] for event in events if event["event"] == "warning")
    assert "fuse-norms before weights alone" in warning
    assert ctcli("quantize", pylm, tmp_path / "out", *options).stderr == ""


@pytest.mark.parametrize(
    ("scheme", "observer", "steps", "words"),
    [
        ("W4A16", "minmax", [], ["W4A16: KL divergence 0.529 on SmolLM2-135M, 0.01094 on the"]),
        ("W4A16", "signed", ["equalize", "reindex"], ["0.291 on SmolLM2-135M (to the nearest 0."]),
        ("W4A16", "signed", ["equalize", "rotate"], []),
        ("W4A16", "minmax", ["rotate"], ["W4A16: KL divergence 0.767 on SmolLM2-135M"]),
        ("W4A16", "mse", [], []),
        ("W8A8", "minmax", [], []),
    ],
)
def test_measured_losses(scheme: str, observer: Any, steps: list[str], words: list[str]) -> None:
    found = measured_loss([preset(scheme)] * 2, observer, [{"use": step} for step in steps])
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({}, True),
        ({"group_size": 64}, True),
        ({"group_size": 16}, False),
        ({"num_bits": 8, "group_size": 64}, False),
        ({"strategy": "channel"}, False),
        ({"symmetric": False}, False),
    ],
)
def test_losses_are_those_of_the_preset_itself(changes: dict[str, Any], is_told: bool) -> None:
    ((_, scheme),) = parse_schemes(["W4A16"], Overrides(**changes))
    assert bool(measured_loss([scheme], "minmax", [])) == is_told


def test_the_guide_has_the_losses_that_are_told() -> None:
    guide = (ROOT / "ctcli" / "guide" / "schemes.md").read_text()
    told = [
        f"| `{scheme}` | {_words(*method)} | {_cells(losses, methods[_NEAREST])} |"
        for scheme, methods in _LOSSES.items()
        for method, losses in methods.items()
    ]
    assert [row for row in guide.splitlines() if row in told] == told
    head = " | ".join(_MODELS)
    assert f"| scheme | method | {head} |" in guide


def _words(change: str | None, observer: str) -> str:
    """A method as the guide names it."""
    before = f"`{change}`" if change else ""
    if observer == "minmax":
        return before or "to the nearest"
    return f"{before}, then `--observer {observer}`" if before else f"`--observer {observer}`"


def _cells(losses: Sequence[float | None], nearest: Sequence[float | None]) -> str:
    """Losses, with the part of the nearest's that is gone."""
    return " | ".join(
        ""
        if loss is None or least is None
        else f"{loss}"
        if loss == least
        else f"{loss} ({1 - loss / least:.0%})"
        for loss, least in zip(losses, nearest, strict=True)
    ).replace("%", " %")
