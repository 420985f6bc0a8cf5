"""`ctcli export-bin`: every byte of the three layouts, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ctcli
from tests.helpers.exporting import export, refusal
from tests.helpers.llama2c import Model, write
from tests.helpers.llama2c import quantize_q80 as plain_q80
from tests.helpers.llamas import (
    PARAMS,
    SMALL,
    hf_config,
    hf_tensors,
    make_model,
    meta_tensors,
    save,
    save_hf,
)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_every_byte_is_the_plain_writers(
    tmp_path: Path, version: int, dtype: str, tied: bool, kv_heads: int
) -> None:
    model = make_model(replace(SMALL, n_kv_heads=kv_heads), tied=tied, dtype=dtype)
    source = save_hf(tmp_path / "source", model, dtype)
    report = export(source, tmp_path / "out.bin", version=version)
    made = (tmp_path / "out.bin").read_bytes()
    assert made == write(model, version)
    assert len(made) == report.data()["file_bytes"]


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_metas_rows_are_side_by_side_already(tmp_path: Path, version: int, tied: bool) -> None:
    model = make_model(tied=tied)
    tensors = {**meta_tensors(model), "rope.freqs": np.ones(8, np.float32)}
    source = save(tmp_path / "source", tensors, params__json=PARAMS)
    export(source, tmp_path / "out.bin", version=version, max_seq_len=16)
    assert (tmp_path / "out.bin").read_bytes() == write(model, version)


def test_rows_of_more_than_one_block_are_put_together(tmp_path: Path) -> None:
    """Blocks have a million elements, jobs four: heads of 128 rows, two jobs of embeddings."""
    sizes = replace(SMALL, dim=2048, hidden_dim=64, n_layers=1, n_heads=16, vocab_size=3000)
    model = make_model(sizes)
    report = export(save_hf(tmp_path / "source", model), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2, 64)
    assert report.errors == errors_of(model, 64)


@pytest.mark.parametrize(
    ("changes", "head", "shared"),
    [
        ({"tie_word_embeddings": True}, "other", True),
        ({"tie_word_embeddings": False}, "other", False),
        ({"tie_word_embeddings": False}, "equal", True),
        ({"tie_word_embeddings": None}, "equal", True),
        ({"tie_word_embeddings": False}, "absent", True),
        ({"tie_word_embeddings": None}, "absent", True),
    ],
)
def test_the_classifier_is_shared_if_declared_absent_or_equal(
    tmp_path: Path, changes: dict[str, Any], head: str, shared: bool
) -> None:
    model = make_model(tied=False)
    own = {"other": model.classifier, "equal": model.embedding, "absent": None}[head]
    config = {k: v for k, v in {**hf_config(model), **changes}.items() if v is not None}
    tensors = hf_tensors(replace(model, classifier=own))
    export(save(tmp_path / "source", tensors, config__json=config), tmp_path / "out.bin")
    expected = replace(model, classifier=None) if shared else model
    assert (tmp_path / "out.bin").read_bytes() == write(expected, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None},
        {"rope_parameters": None, "rope_theta": 10000, "dtype": None, "torch_dtype": "float16"},
        {"rope_scaling": None, "hidden_act": "silu", "head_dim": 16, "num_key_value_heads": 2},
        {"rms_norm_eps": 9.999999747378752e-06},
        {"model_type": "mistral", "sliding_window": 16},
    ],
)
def test_configs_old_and_new_that_mean_the_same_give_the_same(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = make_model()
    export(save_hf(tmp_path / "source", model, **changes), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2)


def test_absent_kv_heads_are_as_many_as_heads(tmp_path: Path) -> None:
    model = make_model(replace(SMALL, n_kv_heads=4))
    source = save_hf(tmp_path / "source", model, num_key_value_heads=None)
    export(source, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2)


@pytest.mark.parametrize(
    ("dim", "hidden", "group"), [(64, 128, 64), (64, 352, 32), (48, 96, 16), (20, 64, 4)]
)
def test_the_default_group_size_divides_both_and_says_when_it_is_smaller(
    tmp_path: Path, dim: int, hidden: int, group: int
) -> None:
    model = make_model(replace(SMALL, dim=dim, hidden_dim=hidden, n_heads=2))
    report = export(save_hf(tmp_path / "source", model), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2, group)
    assert report.header.group_size == group
    assert f"group_size {group}" in dict(report.rows())["header"]


def test_a_smaller_group_is_a_warning(cli: Ctcli, tmp_path: Path) -> None:
    source = save_hf(tmp_path / "source", make_model())
    done = cli("export-bin", source, tmp_path / "out.bin")
    assert "warning: group size 32: 64 does not divide both dim 64 and hidden_dim 96" in done.stderr
    given = cli("export-bin", source, tmp_path / "given.bin", "--group-size", "32")
    assert given.returncode == 0
    assert "warning" not in given.stderr


def test_a_given_group_size_is_taken_if_it_divides_and_refused_by_dimension(tmp_path: Path) -> None:
    model = make_model()
    source = save_hf(tmp_path / "source", model)
    export(source, tmp_path / "out.bin", group_size=16)
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2, 16)
    assert refusal(source, group_size=64) == ["--group-size 64 does not divide hidden_dim 96."]
    assert refusal(source, group_size=24) == ["--group-size 24 does not divide dim 64."]
    assert len(refusal(source, group_size=40)) == 2


def test_max_seq_len_goes_into_the_header(tmp_path: Path) -> None:
    model = make_model()
    source = save_hf(tmp_path / "source", model)
    for version in (0, 1, 2):
        export(source, tmp_path / f"{version}.bin", version=version, max_seq_len=5)
        expected = write(replace(model, config=replace(SMALL, max_seq_len=5)), version)
        assert (tmp_path / f"{version}.bin").read_bytes() == expected


def errors_of(model: Model, group: int) -> dict[str, float]:
    """The largest |w - q * scale| of each matrix of a model's Hugging Face checkpoint."""
    found = {}
    for name, tensor in hf_tensors(model).items():
        if tensor.ndim == 2:
            codes, scales = plain_q80(tensor, group)
            values = codes.reshape(-1, group).astype(np.float32) * scales[:, None]
            error = np.abs(values - tensor.reshape(-1, group)).max()
            found[name.removesuffix(".weight")] = float(error)
    return found


def test_the_largest_absolute_error_of_every_matrix_is_reported(cli: Ctcli, tmp_path: Path) -> None:
    model = make_model(tied=False)
    source = save_hf(tmp_path / "source", model)
    done = json.loads(cli("export-bin", source, tmp_path / "out.bin", "--json").stdout)
    expected = errors_of(model, 32)
    found = {t["module"]: t["max_error"] for t in done["tensors"] if t["max_error"] is not None}
    assert found == expected
    assert done["max_error"] == max(expected.values())
    shown = cli("export-bin", source, tmp_path / "shown.bin").stdout
    worst = max(expected, key=expected.__getitem__)
    assert f"{expected[worst]:.9f}  {worst}" in shown
    assert f"largest absolute error  {expected[worst]:.9f}" in shown


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_dry_run_tells_header_sizes_and_offsets_and_writes_nothing(
    cli: Ctcli, tmp_path: Path, version: int
) -> None:
    model = make_model(tied=False)
    source = save_hf(tmp_path / "source", model)
    options = ("--version", str(version), "--json")
    dry = json.loads(cli("export-bin", source, tmp_path / "o.bin", *options, "--dry-run").stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = json.loads(cli("export-bin", source, tmp_path / "o.bin", *options).stdout)
    content = (tmp_path / "o.bin").read_bytes()
    assert (
        dry["header"]
        == done["header"]
        == {
            **vars(model.config),
            "version": version,
            "shared_classifier": False,
            "group_size": 32 if version == 2 else None,
        }
    )
    assert dry["bytes_to_write"] == dry["file_bytes"] == len(content)
    ends = [dry["header_bytes"], *(t["offset"] + t["bytes"] for t in dry["tensors"])]
    assert ends == [*(t["offset"] for t in dry["tensors"]), len(content)]
    places = {(t["name"], t["layer"]): t["offset"] for t in dry["tensors"]}
    norm = model.layers["ffn_norm"][1].tobytes()
    assert content[places["ffn_norm", 1] :].startswith(norm)
    last = plain_q80(model.layers["w3"][1], 32)[0] if version == 2 else model.layers["w3"][1]
    assert content[places["w3", 1] :].startswith(last.tobytes())


def test_a_group_of_zeros_gives_zeros_and_scale_zero(tmp_path: Path) -> None:
    model = make_model()
    model.layers["wq"][0][3, 32:64] = 0
    model.layers["w2"][1][:] = 0
    source = save_hf(tmp_path / "source", model)
    report = export(source, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2)
    assert report.errors["model.layers.1.mlp.down_proj"] == 0
