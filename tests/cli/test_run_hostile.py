"""`ctcli run`: steps that hinder each other, odd recipes, and weights that are not finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctcli.cli.recipes import make_steps
from ctcli.errors import CtcliError
from ctcli.storage.layout import lay_out
from ctcli.storage.local import local_file
from ctcli.storage.opening import open_checkpoint
from ctcli.storage.recipe import read_history, read_recipe
from tests.conftest import Ctcli
from tests.helpers.checkpoints import tensor_hashes, write_index
from tests.helpers.operating import run_steps
from tests.helpers.quantizing import config_of
from tests.helpers.tiny_models import EXACT, Models, difference, load, logits, make, read, write

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


ATTENTION = "model.layers.1.self_attn"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.q_proj.weight: 1 of its values are NaN"),
        (f"{ATTENTION}.q_proj.bias", f"{ATTENTION}.q_proj: a norm or a bias that goes into it"),
        (f"{ATTENTION}.o_proj.bias", f"{ATTENTION}.o_proj.bias: 1 of its values are NaN"),
        ("model.layers.1.input_layernorm.weight", ": a norm or a bias that goes into it holds NaN"),
    ],
)
def test_the_weight_that_is_not_finite_is_named(tensor: str, words: str, tmp_path: Path) -> None:
    """In a family where a linear's bias is computed from its weight and its norm's bias."""
    source = make("starcoder2", tmp_path / "source")
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        if tensor in tensors:
            tensors[tensor].view(-1)[5] = torch.nan
            save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CtcliError, match=words):
        run_steps(source, tmp_path / "out", STREAM, FP8, workers=1)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_as_numbers_have_the_bounds_of_those_in_words(size: int) -> None:
    with pytest.raises(CtcliError, match=f"max_shard_size = {size}: '{size}' is no size"):
        make_steps([{"use": "reindex", "max_shard_size": size}])


def test_paths_cannot_have_nul_characters() -> None:
    step = {"use": "quantize", "config": "a\0b", "config_sha256": "00"}
    with pytest.raises(CtcliError, match="give a text without NUL characters"):
        make_steps([step])


def test_what_is_wrong_with_any_step_is_told_at_once() -> None:
    steps: list[dict[str, Any]] = [
        {"use": "quantize", "scheme": "W5A5"},
        {"use": "rotate", "sed": 1},
        {"use": "fuse-norms", "mapping": "none.toml", "mapping_sha256": "00"},
        {"use": "fuse-norms", "mapping": "none.json"},
    ]
    with pytest.raises(CtcliError) as refused:
        make_steps(steps)
    starts = [problem.partition(")")[0] for problem in refused.value.problems]
    assert starts == [
        "step 1 (quantize",
        "step 2 (rotate",
        "step 3 (fuse-norms",
        "step 4 (fuse-norms",
    ]


def test_recipes_of_windows_editors_are_read(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(b'\xef\xbb\xbf[[steps]]\r\nuse = "reindex"\r\n')
    assert read_recipe(recipe).steps == ({"use": "reindex"},)


def test_recipes_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = " + 10_000 * "[")
    with pytest.raises(CtcliError, match="nested too deeply"):
        read_recipe(recipe)
    history, problems = read_history(local_file("recipe.toml", recipe))
    assert not history
    assert "nested too deeply" in problems[0]


def test_a_step_can_link_the_shards_that_stay(pylm: Path, ctcli: Ctcli, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(pylm, source)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[steps]]\nuse = "reindex"\nlink = true\n')
    done = ctcli("run", recipe, source, tmp_path / "out", "--json")
    assert not done.returncode, done.stderr
    report = json.loads(done.stdout)["steps"][0]
    linked = [path for path in (tmp_path / "out").glob("*.safetensors") if path.stat().st_nlink > 1]
    assert len(linked) == report["shards"] - report["shards_rewritten"] > 0


def test_a_run_is_not_continued_after_a_norm_in_a_file_of_its_own_changed(
    tiny: Models, tmp_path: Path
) -> None:
    """The output has nothing of that file, but linears are computed with it."""
    config, tensors = read(tiny("llama").folder)
    norm = {"model.norm.weight": tensors.pop("model.norm.weight")}
    source = write(tmp_path / "source", config, tensors)
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    home = {name: f"model-0000{1 + (name in norm)}-of-00002.safetensors" for name in tensors | norm}
    write_index(source, home)
    keys = []
    for gain in (1.5, 2.5):
        save_file(
            {name: torch.full_like(value, gain) for name, value in norm.items()},
            source / "model-00002-of-00002.safetensors",
            metadata={"format": "pt"},
        )
        checkpoint, _ = make_steps([FUSE])[0][1].rewrite(open_checkpoint(str(source)))
        keys.append(lay_out(checkpoint).key)
    assert keys[0] != keys[1]
