"""Tensors by name, order and values; two checkpoints side by side; what schemes would make."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctcli.inspecting.offers import Offer, offers
from ctcli.inspecting.tensors import list_tensors, with_stats
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.tiny_models import Models


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A checkpoint of a file, with odd values, names out of order, and several dtypes."""
    tensors = {
        "layers.10.a": torch.tensor([1.0, -3.0, 0.0, math.nan], dtype=torch.bfloat16),
        "layers.2.a": torch.tensor([[0.5, math.inf]], dtype=torch.float16),
        "layers.2.b": torch.arange(-3, 5, dtype=torch.int32),
        "layers.2.c": torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn),
        "norm": torch.full((300,), -2.0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def names(folder: Path, pattern: str | None, order: str = "name") -> list[str]:
    return [each.name for each in list_tensors(open_checkpoint(str(folder)), pattern, order)]  # type: ignore[arg-type]


def test_names_are_in_natural_order_and_chosen_as_people_write_them(made: Path) -> None:
    every = ["layers.2.a", "layers.2.b", "layers.2.c", "layers.10.a", "norm"]
    assert names(made, None) == every
    assert names(made, "*.a") == ["layers.2.a", "layers.10.a"]
    assert names(made, "layers.2") == every[:3]
    assert names(made, r"re:layers\.1") == ["layers.10.a"]
    assert names(made, "norm") == ["norm"]


def test_tensors_are_sorted_by_what_is_asked_for(made: Path) -> None:
    assert names(made, None, "size")[:2] == ["norm", "layers.2.b"]
    assert names(made, None, "dtype") == [
        *("layers.10.a", "layers.2.a", "norm", "layers.2.c", "layers.2.b")
    ]


def test_stats_are_those_of_the_finite_values(made: Path) -> None:
    checkpoint = open_checkpoint(str(made))
    read: list[int] = []
    listed = with_stats(checkpoint, list_tensors(checkpoint, None, "name"), read.append)
    found = {each.name: each.stats for each in listed}
    assert sum(read) == checkpoint.nbytes
    for name, tensor in load_file(made / "model.safetensors").items():
        values = tensor.double()
        kept, stats = values[values.isfinite()], found[name]
        assert stats
        assert (stats.least, stats.largest) == (kept.min().item(), kept.max().item())
        assert stats.rms == pytest.approx(kept.square().mean().sqrt().item(), rel=1e-12)
        assert stats.zeros == (values == 0).sum().item()
        assert stats.nonfinite == values.numel() - kept.numel()


def test_stats_are_shown(cli: Ctcli, made: Path) -> None:
    lines = cli("inspect", made, "--tensors", "*.a", "--stats").stdout.splitlines()
    assert "-3 to 1" in lines[3]
    assert "1 zero" in lines[3]
    assert "1 value not finite" in lines[3]
    data = json.loads(cli("inspect", made, "--tensors", "norm", "--stats", "--json").stdout)
    assert data["listed"][0]["stats"]["rms"] == 2.0


def test_two_checkpoints_are_compared(cli: Ctcli, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(made / "model.safetensors")
    tensors["new"] = tensors.pop("norm")
    tensors["layers.10.a"] = tensors["layers.10.a"].float()
    save_file(tensors, other / "model.safetensors")
    (other / "config.json").write_text('{"model_type": "llama"}')
    data = json.loads(cli("inspect", made, other, "--json").stdout)
    assert (data["only_in_first"], data["only_in_second"]) == (["norm"], ["new"])
    assert data["different"]["layers.10.a"]["second"] == {"dtype": "F32", "shape": [4]}
    assert data["alike"] == 3
    assert data["config"] == {"model_type": {"first": None, "second": "llama"}}
    shown = cli("inspect", made, other).stdout
    assert "layers.*.a  1 x  BF16 [4] -> F32 [4]" in shown


def made_by(folder: Path, offer: Offer) -> int:
    size = int(offer.options.removeprefix("--group-size ")) if offer.options else None
    options = QuantizeOptions(scheme=(offer.scheme,), group_size=size)
    _, report = quantize(open_checkpoint(str(folder)), options)
    return report.bytes_after


@pytest.mark.parametrize("name", ["pylm", "mixtral", "qwen3_moe"])
def test_offers_are_what_quantizing_makes(name: str, pylm: Path, tiny: Models) -> None:
    folder = pylm if name == "pylm" else tiny(name).folder
    found = offers(open_checkpoint(str(folder)), 1000)
    assert len(found) == 9
    for offer in found:
        if offer.nbytes is not None:
            assert offer.nbytes == made_by(folder, offer), offer.scheme
            assert offer.bits == offer.nbytes * 8 / 1000
    assert name != "pylm" or all(offer.nbytes for offer in found)


def test_memory_that_is_needed() -> None:
    def fits(gigabytes: float) -> str:
        return Offer("x", int(gigabytes * 1e9), 4.0, "", None, True, None).fits

    assert fits(5) == "8 GB"
    assert fits(20) == "24 GB"
    assert fits(350) == "4 x 141 GB"
    assert fits(670) == "8 x 141 GB"
    assert fits(9000) == "more than 16 GPUs"


def test_float32_router_biases_are_no_anomaly(pylm: Path, tmp_path: Path, cli: Ctcli) -> None:
    shutil.copytree(pylm, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    extra = {"model.layers.0.mlp.gate.e_score_correction_bias": torch.ones(8)}
    save_file(extra, tmp_path / "model" / "extra.safetensors")
    found = json.loads(cli("inspect", tmp_path / "model", "--json").stdout)
    assert not found["anomalies"]
