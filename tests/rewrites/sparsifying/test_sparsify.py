"""sparsify: the largest weights stay as they are, and zeros stay zeros through every scheme."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from ctcli.inspecting.inspection import inspect
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.checkpoints import tensor_hashes
from tests.helpers.decompressing import decompressed
from tests.helpers.operating import run_steps
from tests.helpers.quantizing import tensors_of
from tests.helpers.tiny_models import make, read

FOURS, HALF = {"use": "sparsify", "pattern": "2:4"}, {"use": "sparsify", "density": 0.3}
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With equal weights side by side, and small ones."""
    folder = make("llama", tmp_path_factory.mktemp("sparse") / "source", dtype=torch.bfloat16)
    tensors = read(folder)[1]
    tensors[GATE][0] = 0.5
    tensors[GATE][1, ::2] = -0.5
    tensors[GATE][2] *= 1e-30
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def expected(weight: Tensor, step: dict[str, Any]) -> Tensor:
    """The largest of each group, or row, found by sorting; of equals the first."""
    groups = weight.reshape(-1, 4 if "pattern" in step else weight.shape[1])
    kept = 2 if "pattern" in step else round(step["density"] * weight.shape[1])
    order = groups.abs().float().sort(dim=1, descending=True, stable=True).indices[:, :kept]
    mask = torch.zeros(groups.shape, dtype=torch.bool).scatter_(1, order, True)
    return torch.where(mask, groups, torch.zeros_like(groups)).view(weight.shape)


@pytest.mark.parametrize("step", [FOURS, HALF], ids=["2:4", "density"])
def test_the_largest_stay(step: dict[str, Any], source: Path, tmp_path: Path) -> None:
    before = read(source)[1]
    after = read(run_steps(source, tmp_path / "out", step))[1]
    for name, tensor in before.items():
        is_pruned = tensor.ndim == 2 and "embed" not in name and "head" not in name
        assert after[name].equal(expected(tensor, step) if is_pruned else tensor), name
    assert after[GATE][0].count_nonzero() == (32 if step is FOURS else 19)
    again = run_steps(source, tmp_path / "again", step, workers=1)
    assert tensor_hashes(again) == tensor_hashes(tmp_path / "out")


@pytest.mark.parametrize(
    "quantize",
    [
        {"scheme": "W4A16", "group_size": 32},
        {"scheme": "W4A16", "group_size": 32, "observer": "signed"},
        {"scheme": "W4A16_ASYM", "group_size": 32},
        {"scheme": "W4A16_ASYM", "group_size": 32, "observer": "mse", "compute_dtype": "weight"},
        {"scheme": "W8A8"},
        {"scheme": "FP8_DYNAMIC"},
        {"scheme": "NVFP4A16"},
        {"scheme": "MXFP4A16"},
    ],
    ids=lambda each: "-".join(map(str, each.values())),
)
def test_zeros_stay_zeros(
    quantize: dict[str, Any], source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    out = run_steps(source, tmp_path / "out", FOURS, {"use": "quantize", **quantize})
    values: dict[str, NDArray[np.float32]] = decompressed(out)
    before = read(source)[1]
    assert len(values) == 14
    for name, value in values.items():
        assert not value[expected(before[name], FOURS).float().numpy() == 0].any(), name
    assert "sparsity_config" not in (out / "config.json").read_text()
    done = ctcli("verify", out, "--against", source)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("step", [FOURS, HALF], ids=["2:4", "density"])
def test_verify_counts_the_zeros(
    step: dict[str, Any], quantized: bool, source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    last = [{"use": "quantize", "scheme": "W8A8"}] if quantized else []
    out = run_steps(source, tmp_path / "out", step, *last)
    assert ctcli("verify", out).returncode == 0
    tensors = tensors_of(out)
    row = tensors[GATE][5]
    row[(row == 0).nonzero()[:3, 0]] = 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    done = ctcli("verify", out, "--json")
    assert done.returncode == 3
    (found,) = json.loads(done.stdout)["differences"]
    assert found["where"].startswith(GATE.removesuffix(".weight"))
    words = "groups of four have" if step is FOURS else "rows have"
    assert f"of its {words} fewer zeros than sparsify left" in found["message"]


def test_it_says_what_it_did(source: Path, ctcli: Ctcli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ctcli("sparsify", source, out, "--density", "0.5", "--ignore", "re:.*q_proj")
    assert "neither speed nor space" in done.stdout
    assert "12 modules" in done.stdout
    told = json.loads(ctcli("inspect", out, "--json").stdout)
    assert told["sparsity"] == "50 % of each row"
    assert "50 % of each row" in ctcli("inspect", out).stdout
    assert json.loads(ctcli("inspect", source, "--json").stdout)["sparsity"] is None


def test_a_recipe_that_says_nonsense_ends_nothing(
    source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    out = run_steps(source, tmp_path / "out", FOURS)
    recipe, sound = out / "ctcli_recipe.toml", (out / "ctcli_recipe.toml").read_text()
    for value in ('"x"', "[1]", "7.0", "nan"):
        recipe.write_text(sound.replace('pattern = "2:4"', f"density = {value}"))
        done = ctcli("inspect", out, "--json")
        assert (done.returncode, json.loads(done.stdout)["sparsity"]) == (0, None)


def test_after_a_rotation_nothing_is_said_of_zeros(pylm: Path, tmp_path: Path) -> None:
    out = run_steps(pylm, tmp_path / "out", FOURS, {"use": "rotate"})
    assert inspect(open_checkpoint(str(out))).sparsity is None


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ((), 2, "Give either --pattern 2:4 or --density SHARE."),
        (("--pattern", "2:4", "--density", "0.5"), 2, "Give either"),
        (("--density", "1"), 2, "give a share between 0 and 1"),
        (("--density", "0"), 2, "give a share between 0 and 1"),
        (("--pattern", "2:4", "--ignore", "re:.*"), 1, "no module is left to prune"),
        (("--pattern", "2:4", "--ignore", "nowhere"), 1, "nowhere"),
    ],
)
def test_bad_options_are_refused(
    options: tuple[str, ...], status: int, words: str, source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    done = ctcli("sparsify", source, tmp_path / "out", *options)
    assert done.returncode == status
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_columns_that_are_no_whole_groups_are_listed(ctcli: Ctcli, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", intermediate_size=90)
    done = ctcli("sparsify", source, tmp_path / "out", "--pattern", "2:4")
    assert done.returncode == 1
    assert "model.layers.0.mlp.down_proj: its 90 columns are not whole groups" in done.stderr
    assert "model.layers.1.mlp.down_proj" in done.stderr
