"""`ctcli verify --against`: bytes that stay, errors of what is quantized, rewrites in between."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ctcli.checkpoint.value import RECIPE_NAME
from ctcli.cli.sides import expected_checkpoint
from ctcli.storage.opening import open_checkpoint
from ctcli.verifying.findings import Verification
from tests.conftest import ROOT, Ctcli
from tests.helpers import architectures
from tests.helpers.operating import run_fuse_norms, run_rotate, run_steps
from tests.helpers.quantizing import run_quantize, tensors_of
from tests.helpers.tiny_models import Models, make, read, restore
from tests.helpers.verifying import (
    INDEX,
    both,
    copy_of,
    drop,
    edit,
    flip,
    lines,
    move_zero_point,
    reindexed,
    rewrite_shard,
    run_verify,
)

GOLDEN = ROOT / "fixtures" / "golden" / "input"
Q = "model.layers.1.self_attn.q_proj"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


def against(source: Path, made: Path, **options: Any) -> Verification:
    """As the command does it."""
    expected = expected_checkpoint(open_checkpoint(str(source)), made / RECIPE_NAME)
    return run_verify(made, source=expected, **options)


def test_errors_are_those_of_the_restored_weights(tmp_path: Path) -> None:
    run_quantize(GOLDEN, tmp_path / "out", "W8A8")
    error = against(GOLDEN, tmp_path / "out").errors[Q]
    made, source = tensors_of(tmp_path / "out"), tensors_of(GOLDEN)[f"{Q}.weight"].double()
    restored = made[f"{Q}.weight"].double() * made[f"{Q}.weight_scale"].double()
    difference = restored - source
    rms = float(difference.square().mean().sqrt())
    relative = rms / float(source.square().mean().sqrt())
    assert error.rms == pytest.approx(rms, rel=1e-6)  # weights are restored in float32
    assert error.relative == pytest.approx(relative, rel=1e-6)
    assert error.sqnr == pytest.approx(-20 * math.log10(relative), abs=1e-5)
    assert error.largest == pytest.approx(float(difference.abs().max()), rel=1e-6)
    steps = made[f"{Q}.weight_scale"].double() / 2
    rows = (difference.square().mean(1, keepdim=True).sqrt() / steps).view(-1)
    assert error.excess == pytest.approx(float(rows.max()), rel=1e-6)
    assert (error.row, error.column) == (int(rows.argmax()), 0)


def test_results_do_not_depend_on_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_quantize(GOLDEN, tmp_path / "out", "W4A16_ASYM")
    whole = against(GOLDEN, tmp_path / "out", num_workers=1)
    monkeypatch.setattr("ctcli.lazy.cut.BLOCK_ELEMENTS", 4096)
    one, four = (against(GOLDEN, tmp_path / "out", num_workers=n) for n in (1, 4))
    assert one == four
    for name, error in one.errors.items():
        # Blocks are added up in float64.
        assert error.relative == pytest.approx(whole.errors[name].relative, rel=1e-12)
        assert (error.largest, error.row, error.column) == (
            whole.errors[name].largest,
            whole.errors[name].row,
            whole.errors[name].column,
        )


DAMAGES: Mapping[str, tuple[str, Any, str]] = {
    "a flipped bit in a norm": (
        "W4A16",
        flip(NORM, 100, 0),
        f"value {NORM}: 1 of its values differ from the source's.",
    ),
    "a flipped bit in the embedding": (
        "W4A16",
        flip(EMBEDDING, 319 * 256 + 255, 3),
        f"value {EMBEDDING}: 1 of its values differ from the source's.",
    ),
    "a flipped exponent bit of a scale": (
        "W4A16",
        flip(f"{Q}.weight_scale", 2 * 201 + 1, 8),
        f"error {Q}: the group at row 201, column 128 has ",
    ),
    "a flipped exponent bit of an E4M3 scale": (
        "NVFP4A16",
        flip(f"{Q}.weight_scale", 16 * 201 + 7, 4),
        f"error {Q}: the group at row 201, column 112 has ",
    ),
    "a flipped bit of an exponent": (
        "MXFP8A16",
        flip(f"{Q}.weight_scale", 8 * 33 + 5, 1),
        f"error {Q}: the group at row 33, column 160 has ",
    ),
    "a flipped exponent bit of a row's scale": (
        "FP8_DYNAMIC",
        flip(f"{Q}.weight_scale", 17, 8),
        f"error {Q}: the group at row 17, column 0 has ",
    ),
    "a flipped exponent bit of a block's scale": (
        "FP8_BLOCK",
        flip(f"{Q}.weight_scale", 3, 8),
        f"error {Q}: the group at row 128, column 128 has ",
    ),
    "a swapped zero point": (
        "W4A16_ASYM",
        edit(f"{Q}.weight_zero_point", move_zero_point),
        f"error {Q}: the group at row ",
    ),
    "a missing norm": (
        "W4A16",
        drop(NORM),
        f"difference {NORM}: it is missing: the source has it.",
    ),
    "another dtype": (
        "W4A16",
        both(edit(NORM, lambda tensor: tensor.float()), reindexed),
        f"difference {NORM}: it is F32 [256], and should be BF16 [256].",
    ),
    "another dtype of a scale": (
        "W4A16",
        both(edit(f"{Q}.weight_scale", lambda tensor: tensor.float()), reindexed),
        f"difference {Q}.weight_scale: it is F32, and the source's weight BF16.",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_shows_against_the_source(name: str, tmp_path: Path) -> None:
    scheme, damage, expected = DAMAGES[name]
    run_quantize(GOLDEN, tmp_path / "out", scheme)
    folder = copy_of(tmp_path / "out", tmp_path)
    damage(folder)
    found = [line for line in lines(against(GOLDEN, folder)) if not line.startswith("shape")]
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_an_error_above_the_limit_is_a_difference(tmp_path: Path) -> None:
    run_quantize(GOLDEN, tmp_path / "out", "W4A16")
    errors = against(GOLDEN, tmp_path / "out").errors
    limit = float(np.median([error.relative for error in errors.values()]))
    found = against(GOLDEN, tmp_path / "out", max_error=limit)
    above = {name for name, error in errors.items() if error.relative > limit}
    assert {finding.where for finding in found.findings} == above
    assert 0 < len(above) < len(errors)
    assert found.findings[0].message.startswith("its relative error is 0.1")


def test_tensors_of_another_checkpoint_are_found(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    run_quantize(model.folder, tmp_path / "out", "FP8_DYNAMIC")
    found = lines(against(tiny("llama", hidden=32).folder, tmp_path / "out"))
    q = "model.layers.0.self_attn.q_proj"
    assert f"difference {q}.weight: its shape is [64, 64], and [32, 32] in the source." in found
    assert f"difference {NORM}: it is F32 [64], and should be F32 [32]." in found


ROTATIONS: Mapping[str, Mapping[str, Any]] = {
    "R1 and R2": {},
    "random signs": {"transform_type": "random-hadamard", "rotations": ("R1", "R2")},
    "R4": {"rotations": ("R1", "R2", "R4"), "block_size": 32},
}


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("columns", [1, 1024])
def test_a_rotated_checkpoint_goes_through_its_recipe(
    rotation: str, columns: int, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    run_rotate(model.folder, tmp_path / "rotated", **ROTATIONS[rotation])
    monkeypatch.setattr("ctcli.lazy.nodes.LEAST_COLUMNS", columns)
    found = against(model.folder, tmp_path / "rotated")
    assert lines(found) == []
    # Rounding to float32 of what was computed in float64.
    assert 0 < max(error.relative for error in found.errors.values()) < 2**-24
    assert max(error.excess for error in found.errors.values()) <= 1

    run_quantize(tmp_path / "rotated", tmp_path / "out", "W8A8")
    one_step = against(tmp_path / "rotated", tmp_path / "out")
    both_steps = against(model.folder, tmp_path / "out")
    assert lines(one_step) == lines(both_steps) == []
    assert one_step.errors.keys() < both_steps.errors.keys()
    for name, error in one_step.errors.items():
        assert both_steps.errors[name].relative == pytest.approx(error.relative, rel=1e-4)
        assert 0 < error.relative < 0.02


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "FP8_DYNAMIC", "NVFP4A16", "FP8_BLOCK"])
@pytest.mark.parametrize("columns", [1, 1024])
def test_one_pass_is_compared_with_what_was_never_rounded(
    scheme: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctcli.lazy.nodes.LEAST_COLUMNS", columns)
    steps = ({"use": "rotate"}, {"use": "quantize", "scheme": scheme})
    made = run_steps(GOLDEN, tmp_path / "out", *steps)
    found = against(GOLDEN, made)
    assert lines(found) == []
    assert max(error.excess for error in found.errors.values()) < 1.1
    flip(f"{Q}.weight_scale", 3, 15 if scheme != "NVFP4A16" else 7)(made)
    damaged = lines(against(GOLDEN, made))
    if scheme != "W4A16":  # whose scales may be negative
        negative = f"value {Q}.weight_scale: 1 of its values are zero or negative"
        assert damaged.pop(0).startswith(negative)
    (line,) = damaged
    assert line.startswith(f"error {Q}: the group at row ")


def test_fused_norms_are_known_and_biases_are_compared(tiny: Models, tmp_path: Path) -> None:
    for name in ("llama", "opt", "gemma"):
        model, out = tiny(name), tmp_path / name
        run_fuse_norms(model.folder, out)
        found = against(model.folder, out)
        assert lines(found) == []
        weight = next(iter(found.errors))
        tensors = tensors_of(out)
        holder = weight if weight in tensors else f"{weight}.weight"
        damage = edit(holder, lambda tensor: tensor * 1.01)
        damage(out)
        (line,) = lines(against(model.folder, out))
        assert line.startswith(f"error {weight}: the group at row ")


def test_tensors_without_elements_have_no_errors(tmp_path: Path) -> None:
    source = make("gemma3", tmp_path / "source", dtype=torch.bfloat16)
    empty = {
        f"model.vision_tower.{n}": torch.zeros(shape, dtype=torch.bfloat16)
        for n, shape in enumerate([(0,), (0, 4), (4, 0), (4, 0, 3)])
    }
    restore(source, {**read(source)[1], **empty})
    out = run_fuse_norms(source, tmp_path / "out", dtype="float32")
    assert not lines(against(source, out))


@pytest.mark.parametrize("compares", [True, False])
def test_too_little_memory_is_refused(compares: bool, cli: Ctcli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_quantize(GOLDEN, out, "W8A8")
    options = ["--against", GOLDEN] if compares else []
    refused = cli("verify", out, *options, "--max-memory", "10KB")
    assert refused.returncode == 1
    needed = re.search(r"--max-memory: the largest job needs ([0-9,]+) bytes", refused.stderr)
    assert needed, refused.stderr
    assert refused.stderr.splitlines()[-1] == "next: Give a larger --max-memory."
    done = cli("verify", out, *options, "--max-memory", needed[1].replace(",", ""))
    assert done.returncode == 0, done.stderr


def test_a_source_further_back_goes_through_history(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    run_fuse_norms(model.folder, tmp_path / "fused")
    run_rotate(tmp_path / "fused", tmp_path / "rotated")
    run_quantize(tmp_path / "rotated", tmp_path / "out", "FP8_DYNAMIC")
    for source in (model.folder, tmp_path / "fused", tmp_path / "rotated"):
        assert lines(against(source, tmp_path / "out")) == []
    (tmp_path / "out" / RECIPE_NAME).unlink()
    assert lines(against(model.folder, tmp_path / "out")) != []


def test_packed_experts_are_compared_one_by_one(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts"
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{experts}.gate_up_proj": torch.randn(4, 64, 128, generator=generator),
        f"{experts}.down_proj": torch.randn(4, 128, 32, generator=generator),
        "model.norm.weight": torch.ones(128),
    }
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    config = (
        '{"model_type": "novel", "hidden_size": 128, "moe_intermediate_size": 32, "num_experts": 4}'
    )
    (tmp_path / "source" / "config.json").write_text(config)
    run_quantize(tmp_path / "source", tmp_path / "out", "NVFP4A16")
    found = against(tmp_path / "source", tmp_path / "out")
    assert lines(found) == []
    assert len(found.errors) == 12

    def swap(tensors: dict[str, Tensor]) -> None:
        one, other = (f"{experts}.{n}.down_proj.weight_packed" for n in (0, 1))
        tensors[one], tensors[other] = tensors[other], tensors[one]

    rewrite_shard(tmp_path / "out", "model.safetensors", swap)
    damaged = lines(against(tmp_path / "source", tmp_path / "out"))
    assert [line.partition(": the")[0] for line in damaged] == [
        f"error {experts}.{n}.down_proj" for n in (0, 1)
    ]


def test_transposed_experts_are_compared_after_a_rotation(tmp_path: Path) -> None:
    source, out = architectures.made(tmp_path / "source", "llama4_text", tied=False), tmp_path / "o"
    rotate = ({"use": "fuse-norms"}, {"use": "rotate", "rotations": ["R1"]})
    run_steps(source, out, *rotate, {"use": "quantize", "scheme": ["W8A8"]})
    found = against(source, out)
    assert lines(found) == []
    assert len([module for module in found.errors if ".experts." in module]) == 24

    def swap(tensors: dict[str, Tensor]) -> None:
        experts = "model.layers.1.feed_forward.experts.2."
        one, other = (f"{experts}{role}_proj.weight" for role in ("gate", "up"))
        tensors[one], tensors[other] = tensors[other], tensors[one]

    rewrite_shard(out, "model.safetensors", swap)
    assert len(lines(against(source, out))) == 2


def test_calibrated_scales_are_noted(tmp_path: Path) -> None:
    modules = [name[:-7] for name in tensors_of(GOLDEN) if name.endswith("_proj.weight")]
    scales = {f"{m}.input_scale": torch.full((1,), 0.5) for m in modules}
    save_file(scales | {"model.layers.0.self_attn.k_scale": torch.ones(1)}, tmp_path / "scales")
    run_quantize(GOLDEN, tmp_path / "out", "FP8", input_scales=tmp_path / "scales")
    found = against(GOLDEN, tmp_path / "out")
    missing = [line for line in lines(found) if "kv_cache_scheme demands it" in line]
    assert lines(found) == missing
    assert len(missing) == 3  # of four
    note = "model.layers.0.self_attn.k_scale: it comes from calibration, not from the source"
    assert found.notes == (note,)
    assert (tmp_path / "out" / INDEX).exists()
