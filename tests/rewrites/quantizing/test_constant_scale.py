"""NVFP4 activations without calibration: a global scale of one, and all say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.storage.card import model_card
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.quantizing import tensors_of
from tests.helpers.tiny_models import logits, make

OPTION = "--constant-input-scale"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("constant") / "source", dtype=torch.bfloat16)


def test_every_module_gets_a_scale_of_one(source: Path, ctcli: Ctcli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scheme = ("--scheme", "re:.*mlp.*=NVFP4", "--scheme", "NVFP4A16")
    done = ctcli("quantize", source, out, *scheme, OPTION)
    assert done.returncode == 0, done.stderr
    assert "6 modules: constant, 1.0; nothing was calibrated" in done.stdout
    tensors = tensors_of(out)
    scales = {n: t for n, t in tensors.items() if n.endswith("input_global_scale")}
    assert {name.split(".")[-3] for name in scales} == {"mlp"}
    assert len(scales) == 6
    assert all(t.tolist() == [1.0] and t.dtype == torch.float32 for t in scales.values())
    assert ctcli("verify", out, "--against", source).returncode == 0
    model = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    found = logits(model)
    assert found.isfinite().all()
    assert found.std() > 0


def test_the_card_says_so(source: Path) -> None:
    said = "The global scale of activations is 1.0 in every module: nothing was calibrated."
    options = QuantizeOptions(scheme=("NVFP4",), constant_input_scale=True)
    made, _ = quantize(open_checkpoint(str(source)), options)
    assert said in model_card(made, "ctcli quantize").decode()
    made, _ = quantize(open_checkpoint(str(source)), QuantizeOptions(scheme=("NVFP4A16",)))
    assert "calibrated" not in model_card(made, "ctcli quantize").decode()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scheme", "W4A16", OPTION), "no scheme has activations under a global scale (W4A16)"),
        (("--scheme", "FP8", OPTION), "no scheme has activations under a global scale (FP8)"),
        (("--scheme", "NVFP4", OPTION, "--input-scales", "scales"), "scales has the scales"),
        (("--scheme", "NVFP4"), "or for NVFP4 --constant-input-scale"),
    ],
)
def test_it_is_refused_where_nothing_takes_it(
    options: tuple[str, ...], words: str, source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    (tmp_path / "scales").write_bytes(b"")
    named = [str(tmp_path / "scales") if word == "scales" else word for word in options]
    done = ctcli("quantize", source, tmp_path / "out", *named)
    assert done.returncode == 1
    assert words in done.stderr


def test_the_summary_for_programs_counts_them(source: Path, ctcli: Ctcli, tmp_path: Path) -> None:
    words = ("--scheme", "NVFP4", OPTION, "--dry-run", "--json")
    done = ctcli("quantize", source, tmp_path / "out", *words)
    assert json.loads(done.stdout)["constant_input_scales"] == 14
