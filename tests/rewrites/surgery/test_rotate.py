"""fuse-norms and rotate: every family computes the same before and after, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctcli.errors import CtcliError
from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes, tensor_hashes
from tests.helpers.operating import run_fuse_norms, run_rotate
from tests.helpers.surgery import orthogonal
from tests.helpers.tiny_models import (
    EXACT,
    LLAMA_MAPPING,
    MODELS,
    Models,
    Tiny,
    make,
    read,
    write,
)

TYPES = ("hadamard", "random-hadamard", "random-matrix")


def rotations_of(model: Tiny) -> list[tuple[str, ...]]:
    """What can be rotated, out of R1, R2 and both."""
    one = [name for name in ("R1", "R2") if model.allows(name, *(["fuse-norms"] * (name == "R1")))]
    return [*((name,) for name in one), *([("R1", "R2")] if len(one) == 2 else [])]


EVERY = pytest.mark.parametrize("name", MODELS)
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@EVERY
@TIED
def test_fused_norms_change_nothing(name: str, tied: bool, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name, tied)
    if not model.allows("fuse-norms"):
        with pytest.raises(CtcliError, match=re.escape(model.architecture.family)):
            run_fuse_norms(model.folder, tmp_path / "out")
        return
    out = run_fuse_norms(model.folder, tmp_path / "out")
    assert model.error(out) <= EXACT
    _, tensors = read(out)
    one = 1.0 - model.architecture.gain_offset
    for norm in model.architecture.norms:
        assert tensors[f"{norm.module}.weight"].eq(one).all()
    again = run_fuse_norms(out, tmp_path / "again")
    assert tensor_hashes(again) == tensor_hashes(out)
    assert (again / "config.json").read_bytes() == (out / "config.json").read_bytes()


@EVERY
@pytest.mark.parametrize("transform_type", TYPES)
def test_rotations_change_nothing(
    name: str, transform_type: str, tiny: Models, tmp_path: Path
) -> None:
    model = tiny(name, tied=transform_type == "random-hadamard")
    for rotations in rotations_of(model):
        out = tmp_path / "-".join(rotations)
        run_rotate(model.folder, out, rotations=rotations, transform_type=transform_type, seed=3)
        assert model.error(out) <= EXACT
        assert tensor_hashes(out) != tensor_hashes(model.folder)
    for refused in {"R1", "R2"} & {*model.architecture.refusals}:
        with pytest.raises(CtcliError, match=f"{model.architecture.family}: {refused} would"):
            run_rotate(model.folder, tmp_path / "refused", rotations=(refused,))


@EVERY
@pytest.mark.parametrize("hidden", [576, 536], ids=["36x16", "67x8"])
def test_widths_that_are_no_power_of_two(
    name: str, hidden: int, tiny: Models, tmp_path: Path
) -> None:
    """Of the stream, and of heads; fused first, by a command of its own, where that is exact."""
    model = tiny(name, hidden=hidden)
    source = model.folder
    if model.allows("fuse-norms"):
        source = run_fuse_norms(source, tmp_path / "fused")
    rotations = rotations_of(model)[-1]
    for transform_type in TYPES:
        out = tmp_path / transform_type
        run_rotate(source, out, rotations=rotations, transform_type=transform_type)
        assert model.error(out) <= EXACT


@pytest.mark.parametrize("name", ["cohere", "opt", "starcoder2"])
def test_centred_models_compute_the_same(name: str, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name)
    out = run_fuse_norms(model.folder, tmp_path / "out", center=True)
    assert model.error(out) <= EXACT
    _, tensors = read(out)
    for writer in model.architecture.writers:
        assert tensors[f"{writer}.weight"].mean(0).abs().max() < 1e-6


def test_centring_an_rms_norm_model_is_refused(tiny: Models, tmp_path: Path) -> None:
    with pytest.raises(CtcliError, match="llama: center would change the model"):
        run_fuse_norms(tiny("llama").folder, tmp_path / "out", center=True)
    assert not (tmp_path / "out").exists()


def test_hadamard_rotations_are_those_of_compressed_tensors(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    fused = run_fuse_norms(model.folder, tmp_path / "fused")
    before = {name: tensor.double() for name, tensor in read(fused)[1].items()}
    out = run_rotate(fused, tmp_path / "out", precision="float64")
    after = read(out)[1]
    r1 = deterministic_hadamard_matrix(64).double() / 8
    r2 = torch.kron(torch.eye(4), deterministic_hadamard_matrix(16).double() / 4)
    layer = "model.layers.1."
    expected = {
        "model.embed_tokens.weight": before["model.embed_tokens.weight"] @ r1,
        "lm_head.weight": before["lm_head.weight"] @ r1,
        f"{layer}self_attn.q_proj.weight": before[f"{layer}self_attn.q_proj.weight"] @ r1,
        f"{layer}self_attn.v_proj.weight": r2[:32, :32].T
        @ before[f"{layer}self_attn.v_proj.weight"]
        @ r1,
        f"{layer}self_attn.v_proj.bias": before[f"{layer}self_attn.v_proj.bias"] @ r2[:32, :32],
        f"{layer}self_attn.o_proj.weight": r1.T @ before[f"{layer}self_attn.o_proj.weight"] @ r2,
        f"{layer}self_attn.o_proj.bias": before[f"{layer}self_attn.o_proj.bias"] @ r1,
        f"{layer}mlp.down_proj.weight": r1.T @ before[f"{layer}mlp.down_proj.weight"],
        f"{layer}mlp.up_proj.weight": before[f"{layer}mlp.up_proj.weight"] @ r1,
    }
    for name, matrix in expected.items():
        # One rounding to float32, of values that float64 has to 1e-15.
        torch.testing.assert_close(after[name], matrix.float(), rtol=2.0**-23, atol=1e-12)


def test_one_rounding_to_bfloat16(tmp_path: Path) -> None:
    """Each rotated weight is a bfloat16 neighbour of the exact one, so that a reader's error is
    that of rounding every weight once."""
    source = make("llama", tmp_path / "source", dtype=torch.bfloat16)
    exact = run_rotate(
        run_fuse_norms(source, tmp_path / "wide", dtype="float32"), tmp_path / "exact"
    )
    _, rounded = read(run_rotate(source, tmp_path / "out"))
    for name, tensor in read(exact)[1].items():
        # Half a step of bfloat16 is 2**-8 at most; float32 arithmetic adds a little near a tie.
        torch.testing.assert_close(rounded[name].float(), tensor, rtol=2.0**-8 * 1.01, atol=1e-6)
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded.values())


def test_a_wide_tensor_does_not_make_the_arithmetic_of_others_wide(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", dtype=torch.bfloat16)
    wide = "model.layers.1.mlp.up_proj.weight"
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        if wide in tensors:
            tensors[wide] = tensors[wide].float()
            save_file(tensors, path)
    found, narrow, precise = (
        tensor_hashes(run_rotate(source, tmp_path / precision, precision=precision))
        for precision in ("auto", "float32", "float64")
    )
    assert found[wide] == precise[wide] != narrow[wide]
    assert {**found, wide: ""} == {**narrow, wide: ""} != {**precise, wide: ""}


def test_every_layer_can_have_its_own_r2(tiny: Models, tmp_path: Path) -> None:
    model = tiny("qwen3")
    options: dict[str, Any] = {"rotations": ("R2",), "transform_type": "random-matrix"}
    options["randomize"] = True
    out = run_rotate(model.folder, tmp_path / "out", **options, seed=1)
    assert model.error(out) <= EXACT
    again = run_rotate(model.folder, tmp_path / "again", **options, seed=1)
    other = run_rotate(model.folder, tmp_path / "other", **options, seed=2)
    assert tensor_hashes(again) == tensor_hashes(out) != tensor_hashes(other)
    same = run_rotate(model.folder, tmp_path / "same", **{**options, "randomize": False}, seed=1)
    turned = [read(folder)[1] for folder in (out, same)]
    sources = read(model.folder)[1]
    for layer, differs in ((0, True), (1, True)):
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        assert torch.equal(turned[0][name], turned[1][name]) != differs
        assert not torch.equal(turned[0][name], sources[name])


def test_blocks(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    out = run_rotate(model.folder, tmp_path / "out", block_size=16)
    assert model.error(out) <= EXACT
    with pytest.raises(CtcliError, match="blocks of 24 do not divide size 64"):
        run_rotate(model.folder, tmp_path / "odd", block_size=24)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_learned_rotations(suffix: str, tiny: Models, tmp_path: Path) -> None:
    model, path = tiny("llama"), tmp_path / f"R.{suffix}"
    matrices = {"R1": orthogonal(64, 1)}
    matrices |= {f"model.layers.{i}.self_attn.R2": orthogonal(16, 2 + i) for i in range(2)}
    tensors = {name: matrix.float().contiguous() for name, matrix in matrices.items()}
    if suffix == "bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    out = run_rotate(model.folder, tmp_path / "out", rotation_file=path)
    assert model.error(out) <= EXACT
    before, after = read(model.folder)[1], read(out)[1]
    torch.testing.assert_close(
        after["model.embed_tokens.weight"],
        (before["model.embed_tokens.weight"].double() @ matrices["R1"]).float(),
        rtol=1e-5,
        atol=1e-6,  # the matrix was rounded to float32
    )


@pytest.mark.parametrize(
    ("name", "matrices", "message"),
    [
        ("llama", {"R1": torch.eye(64) * 1.01}, "R1: not orthogonal"),
        ("llama", {"R1": torch.eye(32)}, "R1: it rotates 32 coordinates, not 64"),
        ("llama", {"R1": torch.ones(64, 32)}, "R1: a rotation is a square matrix"),
        ("llama", {"R": torch.eye(64)}, "R1: not in the rotation file"),
        ("llama", {"R1": torch.eye(64)}, "model.layers.0.self_attn.R2: not in the rotation file"),
        ("starcoder2", {"R1": -torch.eye(64)}, "R1: a LayerNorm subtracts the mean"),
    ],
)
def test_rotation_files_that_do_not_fit(
    name: str, matrices: dict[str, Tensor], message: str, tiny: Models, tmp_path: Path
) -> None:
    save_file(matrices, tmp_path / "R.safetensors")
    with pytest.raises(CtcliError, match=re.escape(message)):
        run_rotate(tiny(name).folder, tmp_path / "out", rotation_file=tmp_path / "R.safetensors")


def test_a_rotation_file_that_is_none(tiny: Models, tmp_path: Path) -> None:
    path = tmp_path / "R.bin"
    path.write_bytes(b"no pickle")
    with pytest.raises(CtcliError, match="no file of tensors"):
        run_rotate(tiny("llama").folder, tmp_path / "out", rotation_file=path)


def test_config_and_index_say_what_happened(tiny: Models, tmp_path: Path) -> None:
    model = tiny("gemma3", tied=True)
    before = json.loads((model.folder / "config.json").read_text())
    out = run_fuse_norms(model.folder, tmp_path / "out", dtype="float32")
    after = json.loads((out / "config.json").read_text())
    assert after["tie_word_embeddings"] is False
    assert after["text_config"].get("tie_word_embeddings") in (None, False)
    assert list(after) == list(before)
    assert "quantization_config" not in after


def test_bytes_do_not_depend_on_the_number_of_workers(tiny: Models, tmp_path: Path) -> None:
    model = tiny("qwen2_moe", hidden=576)
    made = [
        run_rotate(model.folder, tmp_path / str(workers), workers, transform_type="random-hadamard")
        for workers in (1, 2, 8)
    ]
    assert file_hashes(made[0]) == file_hashes(made[1]) == file_hashes(made[2])


def changed(folder: Path, changes: Mapping[tuple[str, int], float]) -> Path:
    """The checkpoint with some elements (tensor name, place) replaced."""
    _, tensors = read(folder)
    for (name, place), value in changes.items():
        tensors[name].view(-1)[place] = value
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_gain_of_zero_cannot_be_divided_by(tmp_path: Path) -> None:
    folder = changed(make("starcoder2", tmp_path / "source"), {("model.norm.weight", 5): 0.0})
    with pytest.raises(CtcliError, match=r"model\.norm"):
        run_fuse_norms(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_too_large_for_its_dtype_is_refused(tmp_path: Path) -> None:
    folder = changed(
        make("llama", tmp_path / "source", dtype=torch.float16),
        {
            ("model.layers.0.self_attn.q_proj.weight", 0): 60000.0,
            ("model.layers.0.input_layernorm.weight", 0): 2.0,
        },
    )
    with pytest.raises(CtcliError, match="too large for F16") as caught:
        run_fuse_norms(folder, tmp_path / "out")
    assert "model.layers.0.self_attn.q_proj" in str(caught.value)
    assert "--dtype float32" in caught.value.hint


def test_a_quantized_checkpoint_is_edited_from_the_floats_it_stands_for(
    cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    quantized, floats = tmp_path / "quantized", tmp_path / "floats"
    assert cli("quantize", pylm, quantized, "--scheme", "FP8_DYNAMIC").returncode == 0
    assert cli("dequantize", quantized, floats, "--dtype", "float32").returncode == 0
    for source, target in ((quantized, tmp_path / "once"), (floats, tmp_path / "twice")):
        done = cli("fuse-norms", source, target, "--dtype", "float32")
        assert done.returncode == 0, done.stderr
    assert tensor_hashes(tmp_path / "once") == tensor_hashes(tmp_path / "twice")


def test_an_unknown_model_type_needs_a_mapping(cli: Ctcli, tiny: Models, tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "newcomer", "architectures": ["NewcomerForCausalLM"]})
    )
    done = cli("rotate", folder, tmp_path / "out")
    assert done.returncode == 1
    assert "newcomer" in done.stderr
    assert "--mapping" in done.stderr
    (tmp_path / "map.toml").write_text(LLAMA_MAPPING)
    done = cli("rotate", folder, tmp_path / "out", "--mapping", tmp_path / "map.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changes"]["R1"] == "hadamard 64"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert tiny("llama").error(tmp_path / "out") <= EXACT


def test_a_dtype_that_cannot_be_computed_with_is_refused(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "source")
    path = folder / "model-00001-of-00004.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("proj.weight"))
    save_file({**tensors, name: tensors[name].to(torch.int32)}, path, metadata={"format": "pt"})
    with pytest.raises(CtcliError, match=re.escape(f"{name}: I32 cannot be computed with")):
        run_rotate(folder, tmp_path / "out")


def test_a_head_of_its_own_beside_a_config_that_says_tied(tiny: Models, tmp_path: Path) -> None:
    """Readers take the head that is stored; the output says so."""
    model = tiny("llama")
    config = {**model.config, "tie_word_embeddings": True}
    source = write(tmp_path / "source", config, model.tensors)
    out = run_rotate(source, tmp_path / "out")
    assert read(out)[0]["tie_word_embeddings"] is False
    assert model.error(out) <= EXACT
