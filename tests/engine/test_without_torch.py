"""What loads neither torch nor numba, and that another device gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import assert_same_but_for_device
from tests.helpers.frozen import PRESETS
from tests.helpers.frozen_sources import make_sources
from tests.helpers.hub import Hub
from tests.helpers.quantizing import run_quantize
from tests.helpers.tiny_models import make

# Runs commands as `ctcli` does, one after the other: whatever one loads stays loaded.
PROGRAM = """
import json, os, sys
from ctcli.__main__ import main
os._exit = sys.exit
ends, lines = [], json.loads(sys.argv[1])
for line in lines:
    sys.argv = ["ctcli", *line.split()]
    try:
        main()
    except SystemExit as end:
        ends.append([line, end.code or 0, sorted({"numba", "torch"} & sys.modules.keys())])
print()
print(json.dumps(ends))
"""
STATIC = {
    "FP8": "FP8 --input-scales input_scale.safetensors",
    "NVFP4": "NVFP4 --input-scales input_global_scale.safetensors",
}
SCHEMES = {name: STATIC.get(name, name) for name in PRESETS}
TYPES = ("hadamard", "random-hadamard", "random-matrix")
ROTATED = (
    *(f"{source} --transform-type {name}" for source in ("tied", "centred") for name in TYPES),
    *(
        f"tied --rotations R1,R2,R3,R4 --block-size 32 --transform-type {name}"
        for name in TYPES[:2]
    ),
)
RUN = 'steps = [{use = "rotate"}, {use = "quantize", scheme = "W4A16_ASYM"}]'


def loaded_by(folder: Path, *lines: str, env: Mapping[str, str] | None = None) -> set[str]:
    """Which of numba and torch are loaded by commands that run in `folder` and end well."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, **(env or {})},
    )
    ends = json.loads(done.stdout.splitlines()[-1])
    assert [(line, code) for line, code, _ in ends] == [(line, 0) for line in lines], done.stderr
    return {name for *_, names in ends for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources to run in; those that are fixtures are links."""
    here = tmp_path_factory.mktemp("sources")
    found = make_sources(here)
    for name in ("pylm", "golden"):
        (here / name).symlink_to(found[name])
    (here / "run.toml").write_text(RUN)
    return here


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_quantize_loads_no_torch(observer: str, folder: Path) -> None:
    lines = [
        f"quantize golden {observer}-{name} --scheme {preset} --observer {observer} --quiet"
        for name, preset in SCHEMES.items()
    ]
    own = f"--type int --bits 5 --strategy group --group-size 32 --observer {observer}"
    if observer == "mse":
        signed = "--scheme W4A16 --observer"
        lines += [
            f"quantize golden of-{each} {signed} {each} --quiet" for each in ("signed", "pnorm")
        ]
    lines += [
        f"quantize golden {observer}-own {own} --asymmetric --quiet",
        f"quantize pylm {observer}-pylm {own} --on-indivisible smaller-group --quiet",
        f"quantize experts {observer}-experts {own} --compute-dtype weight --quiet",
    ]
    assert "torch" not in loaded_by(folder, *lines)


def test_surgery_loads_no_torch(folder: Path) -> None:
    lines = ["fuse-norms golden fused", "fuse-norms pylm wide --dtype float32"]
    lines += ["fuse-norms centred centred-fused --center"]
    lines += [f"rotate {each} rotated-{n}" for n, each in enumerate(ROTATED)]
    lines += ["equalize golden even", "equalize centred even-centred --rounds 2"]
    assert "torch" not in loaded_by(folder, *(f"{line} --quiet" for line in lines))


def test_export_run_and_verify_load_no_torch(folder: Path) -> None:
    lines = [f"export-bin pylm v{version}.bin --version {version}" for version in (0, 1, 2)]
    lines += [
        "run run.toml golden made",
        "verify made --against golden",
        "verify made --sha256 made.sha256",
        "reindex pylm shards --max-shard-size 1MB",
    ]
    assert "torch" not in loaded_by(folder, *(f"{line} --quiet" for line in lines))


def test_kernels_that_are_compiled_load_no_numba(folder: Path, tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    line = "fuse-norms golden {} --quiet"
    assert loaded_by(folder, line.format("once"), env=cache) == {"numba"}
    assert loaded_by(folder, line.format("again"), env=cache) == set()


def test_what_computes_nothing_loads_neither(folder: Path) -> None:
    commands = ["fuse-norms", "quantize", "rotate", "export-bin", "run", "reindex", "inspect"]
    commands += ["equalize", "verify"]
    lines = ["--help", *(f"{command} --help" for command in commands)]
    lines += [
        "reindex golden plain --quiet",
        "inspect golden --tensors",
        "run run.toml golden out --dry-run --quiet",
        "fuse-norms centred out --center --dry-run --quiet",
        "equalize golden out --dry-run --quiet",
        "export-bin pylm out.bin --dry-run --quiet",
    ]
    lines += [f"quantize golden out --scheme {name} --dry-run --quiet" for name in SCHEMES.values()]
    lines += [f"rotate {each} out --dry-run --quiet" for each in ROTATED]
    assert loaded_by(folder, *lines) == set()


def test_plans_of_what_a_hub_has_and_takes_load_neither(folder: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        hub.add("org/model", folder / "golden")
        env = hub.env(tmp_path / "home", hub.token)
        options = "--dry-run --quiet"
        lines = (
            f"quantize org/model out --scheme NVFP4A16 {options}",
            f"rotate org/model out --stream {options}",
            f"fuse-norms org/model hf://org/made {options}",
            f"quantize golden out --scheme W8A8 --push org/made {options}",
            "inspect org/model",
            "reindex org/model hub-out --stream --quiet",
            "reindex golden hf://org/plain --quiet",
        )
        assert loaded_by(folder, *lines, env=env) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("preset", ["FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W4A16", "W3A16"])
def test_weights_are_the_same_with_torch(preset: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Whole checkpoints; test_schemes.py compares any values, and rows in any blocks."""
    source = make("llama", tmp_path / "source", dtype=dtype)
    without = run_quantize(source, tmp_path / "without", preset, on_indivisible="smaller-group")
    with_torch = run_quantize(
        source, tmp_path / "with", preset, on_indivisible="smaller-group", device="cpu:0"
    )
    assert_same_but_for_device(tmp_path / "without", tmp_path / "with")
    # Both sum squares in float32, each in an order of its own.
    assert without.errors == pytest.approx(with_torch.errors, rel=1e-5)
