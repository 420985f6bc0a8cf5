"""fuse-norms and rotate on checkpoints and options that tiny, tidy models do not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ctcli.errors import CtcliError
from ctcli.rewrites.surgery.options import RotateOptions
from ctcli.rewrites.surgery.rotate import rotate
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.operating import run_fuse_norms, run_rotate
from tests.helpers.quantizing import run_quantize
from tests.helpers.surgery import orthogonal
from tests.helpers.tiny_models import (
    LLAMA_MAPPING,
    difference,
    load,
    logits,
    make,
    read,
    restore,
    write,
)

# Float32 rounding over one or two layers; see test_rotate.py.
EXACT = 1e-4
# Wider than a run of columns (1024), so that vectors and rows are cut where they may be.
WIDE: dict[str, Any] = {"hidden": 1088, "num_hidden_layers": 1}


def error(changed: Path, source: Path) -> float:
    return difference(logits(load(changed)), logits(load(source)))


def transform_file(folder: Path, **scheme: Any) -> Path:
    """A TransformConfig of one scheme, `v`."""
    path = folder / "transform.json"
    path.write_text(json.dumps({"config_groups": {"v": {"type": "hadamard", **scheme}}}))
    return path


@pytest.mark.parametrize("block_size", [None, 64])
def test_wide_models_with_layer_norms(block_size: int | None, tmp_path: Path) -> None:
    """A final norm's bias is a vector of more than a run of columns."""
    source = make("starcoder2", tmp_path / "source", **WIDE)
    assert error(run_fuse_norms(source, tmp_path / "fused"), source) <= EXACT
    out = run_rotate(source, tmp_path / "out", block_size=block_size)
    assert error(out, source) <= EXACT


def test_tensors_of_all_ranks_get_the_dtype_asked_for(tmp_path: Path) -> None:
    source = make("gemma3", tmp_path / "source", dtype=torch.bfloat16)
    _, tensors = read(source)
    generator = torch.Generator().manual_seed(1)
    shapes = {"scale": (), "empty": (0, 4), "vector": (3000,), "position": (1, 600, 1024)}
    extra = {
        f"model.vision_tower.{name}": torch.randn(shape, generator=generator).bfloat16()
        for name, shape in shapes.items()
    }
    restore(source, {**tensors, **extra})
    _, found = read(run_fuse_norms(source, tmp_path / "out", dtype="float32"))
    kept = [name for name in found if "vision_tower" in name]
    assert {*extra} < {*kept}
    for name in kept:
        assert torch.equal(found[name], {**tensors, **extra}[name].float()), name
        assert found[name].dtype == torch.float32


def test_blocks_of_a_wide_model(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", tied=True, **WIDE)
    out = run_rotate(source, tmp_path / "out", block_size=16)
    assert error(out, source) <= EXACT


def test_a_head_of_its_own_where_the_default_is_to_tie(tmp_path: Path) -> None:
    """Gemma's class ties unless config.json says otherwise, and some readers go by that alone."""
    source = make("gemma", tmp_path / "source", tied=True)
    config, tensors = read(source)
    del config["tie_word_embeddings"]
    for path in source.glob("*.safetensors*"):
        path.unlink()
    embedding = tensors["model.embed_tokens.weight"]
    write(source, config, {**tensors, "lm_head.weight": embedding})
    out = run_rotate(source, tmp_path / "out")
    assert read(out)[0]["tie_word_embeddings"] is False
    assert error(out, source) <= EXACT
    values = run_rotate(source, tmp_path / "values", rotations=("R2",))
    assert "tie_word_embeddings" not in read(values)[0]


def test_online_transforms_of_linears_with_biases(tmp_path: Path) -> None:
    """A bias comes before the weight in a file of safetensors."""
    source = make("llama", tmp_path / "source")
    places = [{"targets": ["Linear"], "location": "input", "ignore": ["lm_head"]}]
    out = run_rotate(
        source,
        tmp_path / "out",
        transform_config=transform_file(tmp_path, type="random-hadamard", apply=places),
    )
    sizes = {name: len(tensor) for name, tensor in read(out)[1].items() if "v_input" in name}
    assert sizes == {
        "model.layers.0.self_attn.q_proj.v_input.weight": 64,
        "model.layers.0.mlp.down_proj.v_input.weight": 96,
    }


@pytest.mark.parametrize(
    ("location", "target", "head_dim", "size"),
    [
        ("input", "re:.*q_proj$", 24, 64),
        ("output", "re:.*v_proj$", 1 << 14, 32),
        ("q_attn", "re:.*self_attn$", 32, 16),
    ],
)
def test_online_transforms_that_do_not_divide(
    location: str, target: str, head_dim: int, size: int, tmp_path: Path
) -> None:
    source = make("llama", tmp_path / "source")
    path = transform_file(
        tmp_path, head_dim=head_dim, apply=[{"targets": [target], "location": location}]
    )
    with pytest.raises(CtcliError, match=f"{head_dim} coordinates, which do not divide its {size}"):
        run_rotate(source, tmp_path / "out", transform_config=path)
    assert not (tmp_path / "out").exists()


def test_norms_of_heads_are_no_linears(tmp_path: Path) -> None:
    """Cohere's have a gain for each head: a matrix, as linears have."""
    source = make("cohere", tmp_path / "source")
    places = [{"targets": ["Linear"], "location": "weight_input", "ignore": ["lm_head"]}]
    out = run_rotate(
        source,
        tmp_path / "out",
        transform_config=transform_file(tmp_path, head_dim=8, apply=places),
    )
    before, after = read(source)[1], read(out)[1]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_a_transform_of_a_reader_is_not_applied_to_what_was_not_rotated(tmp_path: Path) -> None:
    """A layer for multi-token prediction has linears of the same name."""
    source = make("deepseek_v3", tmp_path / "source")
    tensors = read(source)[1]
    beside = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith("model.layers.1.mlp.")
    }
    restore(source, {name: tensor.clone() for name, tensor in {**tensors, **beside}.items()})
    config, _ = read(run_rotate(source, tmp_path / "out", rotations=("R4",), block_size=8))
    groups = config["quantization_config"]["transform_config"]["config_groups"]
    expected = sorted(name[: -len(".weight")] for name in beside if "down_proj" in name)
    assert len(expected) == 5
    assert [place["ignore"] for place in groups["R4"]["apply"]] == [expected, expected]


@pytest.mark.parametrize("rotations", [("R3",), ("R4",)])
def test_online_rotations_are_not_rotated_again(rotations: Any, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    block_size = 32 if rotations == ("R4",) else None
    out = run_rotate(source, tmp_path / "out", rotations=rotations, block_size=block_size)
    with pytest.raises(CtcliError, match=f"it has online rotations already: {rotations[0]}"):
        run_rotate(out, tmp_path / "again", rotations=("R4",), block_size=32)
    with pytest.raises(CtcliError, match="it has online rotations already"):
        run_fuse_norms(out, tmp_path / "again")


def test_another_rotation_file_does_not_continue_a_run(tmp_path: Path) -> None:
    """A file of the same name and size may hold another matrix."""
    source, path = make("llama", tmp_path / "source"), tmp_path / "R.safetensors"
    keys = []
    for seed in (1, 2):
        save_file({"R1": orthogonal(64, seed).contiguous()}, path)
        chosen = RotateOptions(rotations=("R1",), rotation_file=path)
        keys.append(lay_out(rotate(open_checkpoint(str(source)), chosen)[0]).key)
    assert keys[0] != keys[1]


def test_a_mapping_of_other_heads_than_the_model_has(tmp_path: Path) -> None:
    """Two heads of values as one would be a rotation across them."""
    source = make("llama", tmp_path / "source")
    (tmp_path / "map.toml").write_text("attn_head_dim = 32\n" + LLAMA_MAPPING)
    with pytest.raises(CtcliError, match=r"v_proj.weight has the shape \[32, 64\], not \[64, any"):
        run_rotate(source, tmp_path / "out", mapping=tmp_path / "map.toml")


def test_a_bias_that_is_not_finite_is_named(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    tensors = read(source)[1]
    tensors["model.layers.0.self_attn.v_proj.bias"][3] = torch.nan
    restore(source, tensors)
    with pytest.raises(CtcliError, match=r"layers\.0\.self_attn\.v_proj\.bias: 1 of its values"):
        run_rotate(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"steps = [", b"a = 1\n", b"PK\x03\x04"])
def test_rotation_files_that_hold_no_tensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "R.bin").write_bytes(content)
    with pytest.raises(CtcliError, match=r"R.bin: no file of tensors: \w"):
        RotateOptions(rotation_file=tmp_path / "R.bin")


@pytest.mark.parametrize("matrix", [torch.eye(64).to_sparse(), torch.eye(64) * (1 + 0j)])
def test_rotation_files_of_other_than_dense_real_matrices(matrix: Tensor, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    torch.save({"R1": matrix}, tmp_path / "R.bin")
    with pytest.raises(CtcliError, match=r"R1 is .*: no dense matrix of real numbers"):
        run_rotate(source, tmp_path / "out", rotation_file=tmp_path / "R.bin")


def test_mlps_without_width(tmp_path: Path) -> None:
    """What pruning may leave of a layer."""
    source = make("llama", tmp_path / "source", mlp_bias=False)
    shapes = {"gate_proj": (0, 64), "up_proj": (0, 64), "down_proj": (64, 0)}
    empty = {f"model.layers.1.mlp.{name}.weight": torch.zeros(s) for name, s in shapes.items()}
    restore(source, {**read(source)[1], **empty})
    _, found = read(run_rotate(source, tmp_path / "out"))
    assert {name: found[name].shape for name in empty} == {n: t.shape for n, t in empty.items()}


def test_a_shard_that_holds_nothing_but_empty_weights(cli: Ctcli, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", mlp_bias=False)
    without_rows = {
        f"model.layers.1.mlp.{name}.weight": torch.zeros(0, 64) for name in ("gate_proj", "up_proj")
    }
    others = {name: t for name, t in read(source)[1].items() if name not in without_rows}
    others["model.layers.1.mlp.down_proj.weight"] = torch.zeros(64, 0)
    for path in source.glob("model*"):
        path.unlink()
    save_file(others, source / "model-00001-of-00002.safetensors")
    save_file(without_rows, source / "model-00002-of-00002.safetensors")
    for command in ("rotate", "fuse-norms"):
        done = cli(command, source, tmp_path / command)
        assert done.returncode == 0, done.stderr
        found = load_file(tmp_path / command / "model-00002-of-00002.safetensors")
        assert {name: t.shape for name, t in found.items()} == dict.fromkeys(without_rows, (0, 64))


def test_seeds_that_no_generator_takes(cli: Ctcli, tmp_path: Path) -> None:
    done = cli("rotate", tmp_path, tmp_path / "out", "--seed", str(2**64))
    assert done.returncode == 2
    assert "--seed" in done.stderr
    assert "Traceback" not in done.stderr


def test_transformers_leaves_r3_out_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    run_quantize(source, tmp_path / "plain", "W8A8")
    rotated = run_rotate(source, tmp_path / "rotated", rotations=("R3",))
    run_quantize(rotated, tmp_path / "out", "W8A8")
    models = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        for name in ("plain", "out")
    ]
    assert torch.equal(logits(models[0]), logits(models[1]))


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (("--save-online-weights",), ["--save-online-weights"]),
        (("--rotations", "R2", "--block-size", "8"), ["--block-size"]),
        (("--rotations", "R1", "--randomize"), ["--randomize"]),
        (("--rotation-file", "FILE", "--seed", "1"), ["--seed"]),
        (("--rotation-file", "FILE", "--rotations", "R4"), ["--rotation-file"]),
        (
            ("--transform-config", "FILE", "--rotations", "R1", "--transform-type", "hadamard"),
            ["--rotations", "--transform-type"],
        ),
    ],
)
def test_options_without_effect_are_refused(
    options: tuple[str, ...], idle: list[str], cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    words = [str(tmp_path / "file") if word == "FILE" else word for word in options]
    (tmp_path / "file").write_text("{}")
    done = cli("rotate", pylm, tmp_path / "out", *words)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines if "no effect" in line] == idle


def test_a_transform_config_that_leaves_the_ends_alone_unties_nothing(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", tied=True, mlp_bias=False)
    place = {"targets": ["re:.*down_proj"], "location": "weight_input"}
    groups = {"t": {"type": "hadamard", "head_dim": 32, "apply": [place]}}
    (tmp_path / "t.json").write_text(json.dumps({"config_groups": groups}))
    out = run_rotate(source, tmp_path / "out", transform_config=tmp_path / "t.json")
    assert read(out)[0] == read(source)[0]
    assert read(out)[1].keys() == read(source)[1].keys()
