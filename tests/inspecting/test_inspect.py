"""`ctcli inspect`: held against packages that read the same files, and the commands themselves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    apply_quantization_config,
    preset_name_to_scheme,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ctcli.checkpoint.value import Checkpoint
from ctcli.console import ResultSection
from ctcli.errors import CtcliError
from ctcli.inspecting import abilities
from ctcli.inspecting.inspection import data_of, inspect
from ctcli.inspecting.summary import sections_of
from ctcli.inspecting.weights import weights_of
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.models.modules import modules_of
from ctcli.ops.draws import Draws
from ctcli.ops.transforms import make_rotation
from ctcli.rewrites.equalizing.equalize import equalize
from ctcli.rewrites.equalizing.options import EqualizeOptions
from ctcli.rewrites.exporting.export_bin import export_bin
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.reindex import ReindexOptions, reindex
from ctcli.rewrites.surgery.fuse_norms import fuse_norms
from ctcli.rewrites.surgery.options import FuseOptions, RotateOptions, RotationName
from ctcli.rewrites.surgery.rotate import rotate
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.checkpoints import array, write_checkpoint, write_index
from tests.helpers.hub import Hub
from tests.helpers.llamas import make_model, meta_tensors, save, save_hf
from tests.helpers.operating import run_rotate
from tests.helpers.quantizing import run_quantize
from tests.helpers.tiny_models import Models, load, make
from tests.test_console import run_in_terminal

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_READ = 64 * 1024


def look(folder: Path) -> dict[str, Any]:
    """What is found in a folder, for programs."""
    return data_of(inspect(open_checkpoint(str(folder))))


def test_counts_are_those_of_transformers_and_safetensors(tiny: Models) -> None:
    model = tiny("qwen2_moe")
    data = look(model.folder)
    nbytes: Counter[str] = Counter()
    for shard in data["shards"]:
        path = model.folder / shard["name"]
        assert shard["file_bytes"] == path.stat().st_size
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            assert shard["tensors"] == len(names)
            found = [file.get_tensor(name) for name in names]
        assert shard["tensor_bytes"] == sum(tensor.nbytes for tensor in found)
        nbytes["F32"] += shard["tensor_bytes"]
    assert data["bytes_by_dtype"] == dict(nbytes)
    assert len(data["shards"]) == len(list(model.folder.glob("*.safetensors"))) > 1
    assert data["parameters"] == sum(p.numel() for p in load(model.folder).parameters())
    assert data["parameters_quantized"] == 0
    assert data["family"] == "qwen2_moe"
    assert (data["tied"], data["heads"], data["anomalies"]) == (False, ["lm_head"], [])


def test_straddling_sets_are_those_that_reindex_moves(pylm: Path) -> None:
    data = look(pylm)
    _, report = reindex(open_checkpoint(str(pylm)), ReindexOptions())
    assert data["fused_sets"] == report.fused_sets
    assert [(s["set"], s["shards"]) for s in data["fused_sets_straddling"]] == [
        (move.fused.name, sorted(move.sources)) for move in report.moves
    ]
    assert (data["tied"], data["heads"]) == (True, [])


def refusal(rewrite: Callable[[Checkpoint], object], folder: Path) -> tuple[str, ...]:
    """The reasons of a command that does not run; none if it does."""
    try:
        rewrite(open_checkpoint(str(folder)))
    except CtcliError as error:
        return error.problems
    return ()


def commands() -> Mapping[str, Callable[[Checkpoint], object]]:
    fuse = FuseOptions()
    bin_file = ExportOptions()
    return {
        "fuse-norms": lambda checkpoint: fuse_norms(checkpoint, fuse),
        **{f"rotate {r}": rotating(r) for r in ("R1", "R2", "R3", "R4")},
        "equalize": lambda checkpoint: equalize(checkpoint, EqualizeOptions()),
        "export-bin": lambda checkpoint: export_bin(checkpoint, bin_file),
    }


def rotating(name: RotationName) -> Callable[[Checkpoint], object]:
    options = RotateOptions(rotations=(name,))
    return lambda checkpoint: rotate(checkpoint, options)


# Name of a model -> config keys, and which of the seven can run.
ABLE: Mapping[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, "fuse-norms R1 R2 R3 R4 equalize"),
    "mistral": ({"head_dim": 16}, "fuse-norms R1 R2 R3 R4 equalize"),
    # 90 has no Hadamard matrix, and no rotation above a prime of 1024 is made.
    "starcoder2": ({"intermediate_size": 90}, "fuse-norms R1 R2 R3 equalize"),
    "qwen3": ({"intermediate_size": 1031, "head_dim": 10}, "fuse-norms R1 R2 equalize"),
    "gemma": ({"hidden_size": 2062}, "fuse-norms R2 R3 R4 equalize"),
    "gemma2": ({}, "fuse-norms R2 R3 R4 equalize"),
    "gemma3": ({}, "fuse-norms R2 R3 R4 equalize"),
    "deepseek_v3": ({}, "fuse-norms R1 R2 R4 equalize"),
    "opt_post_norm": ({}, "R2 R3 R4 equalize"),
}


@pytest.mark.parametrize("name", ABLE)
def test_abilities_are_what_the_commands_say(name: str, tmp_path: Path) -> None:
    config, able = ABLE[name]
    folder = make(name, tmp_path / name, **config)
    said = look(folder)["can_run"]
    assert {command: tuple(entry["reasons"]) for command, entry in said.items()} == {
        command: refusal(rewrite, folder) for command, rewrite in commands().items()
    }
    possible = [command.removeprefix("rotate ") for command in said if said[command]["possible"]]
    assert " ".join(possible) == able


@pytest.mark.parametrize("change", [{}, {"rope_theta": 5e5, "rope_parameters": None}])
@pytest.mark.parametrize("tied", [True, False])
def test_export_bin_is_asked_without_reading_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], tied: bool
) -> None:
    model = make_model(tied=tied)
    folder = save_hf(tmp_path / "hf", model, **change)
    reasons = refusal(commands()["export-bin"], folder)
    assert bool(reasons) == bool(change)
    monkeypatch.setattr("ctcli.rewrites.exporting.source._are_equal", pytest.fail)
    said = look(folder)["can_run"]["export-bin"]
    assert (tuple(said["reasons"]), said["possible"]) == (reasons, not reasons)
    params = json.dumps(
        {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 16}
    )
    meta = save(tmp_path / "meta", meta_tensors(model), params__json=params.encode())
    data = look(meta)
    assert data["family"] is None
    assert data["can_run"]["export-bin"]["possible"]


def test_sizes_said_to_have_a_hadamard_matrix_have_one() -> None:
    sure = [size for size in range(1, 600) if abilities._has_hadamard(size)]
    assert {12, 96, 172, 384, 512} <= {*sure}
    for size in [*sure, 11008, 14336, 18944, 28672, 53248]:
        assert abilities._has_hadamard(size)
        assert make_rotation("hadamard", size, Draws(None)).is_hadamard, size


PRESETS = ["W3A16", "W4A16", "W4A16_ASYM", "W6A16", "W8A8", "NVFP4A16", "MXFP4A16", "MXFP8"]


@pytest.mark.parametrize("preset", PRESETS)
def test_quantized_weights_count_as_what_they_stand_for(
    tiny: Models, tmp_path: Path, preset: str
) -> None:
    model = tiny("llama", hidden=128)
    run_quantize(model.folder, tmp_path, preset, on_indivisible="smaller-group")
    data, before = look(tmp_path), look(model.folder)
    assert data["parameters"] == before["parameters"]
    linears = [name for name in model.tensors if name.endswith("_proj.weight")]
    assert data["parameters_quantized"] == sum(model.tensors[name].numel() for name in linears)
    assert sum(group["modules"] for group in data["quantization"]["groups"]) == len(linears)
    assert data["quantization"]["modules_left_alone"] == 2
    assert data["anomalies"] == []
    loads = {name: loader["loads"] for name, loader in data["quantization"]["loaders"].items()}
    in_sglang = preset not in ("W3A16", "W6A16", "MXFP4A16", "MXFP8")
    assert loads == {"vllm": True, "transformers": True, "sglang": in_sglang}
    assert bool(data["quantization"]["sglang_needs"]) == in_sglang
    assert all(data["can_run"][command]["possible"] for command in ("dequantize", "convert"))
    assert data["history"] == [dict(step) for step in open_checkpoint(str(tmp_path)).history] != []


@pytest.mark.parametrize(
    ("preset", "loads"), [("W4A16", True), ("W4A8", True), ("W5A8", False), ("FP8_DYNAMIC", True)]
)
def test_checkpoints_of_compressed_tensors_own_making(
    tmp_path: Path, preset: str, loads: bool
) -> None:
    source = make("llama", tmp_path / "source", hidden=128, intermediate_size=256)
    model = AutoModelForCausalLM.from_pretrained(source)
    groups = {"group_0": preset_name_to_scheme(preset, ["Linear"])}
    config = QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_scale"):
            parameter.data.fill_(0.01)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "out")
    compressor.update_config(tmp_path / "out")
    data = look(tmp_path / "out")
    (group,) = data["quantization"]["groups"]
    assert (group["name"], group["modules"], group["targets"]) == ("group_0", 14, ["Linear"])
    assert data["quantization"]["loaders"]["vllm"]["loads"] == loads
    assert data["quantization"]["loaders"]["transformers"]["loads"]
    assert data["parameters"] == look(source)["parameters"]
    assert data["anomalies"] == []


def test_rotations_at_run_time_are_told(tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama", hidden=128)
    run_rotate(model.folder, tmp_path, rotations=("R2", "R4"), block_size=32)
    data = look(tmp_path)
    assert data["quantization"]["online_transforms"] == {"R4": ["input"]}
    assert data["parameters"] == look(model.folder)["parameters"]
    assert "online rotations already: R2, R4" in data["can_run"]["rotate R1"]["reasons"][0]
    assert data["can_run"]["export-bin"]["possible"] is False


@pytest.mark.parametrize(
    ("specs", "config", "parameters"),
    [
        # GPTQ packs rows, AWQ columns; bitsandbytes flattens; gpt-oss has blocks of 32 elements.
        (
            {"m.qweight": ("I32", 16, 64), "m.qzeros": ("I32", 1, 8), "m.g_idx": ("I32", 128)},
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            128 * 64,
        ),
        (
            {"m.qweight": ("I32", 128, 16), "m.scales": ("F16", 1, 64)},
            {"quantization_config": {"quant_method": "awq", "bits": 8}},
            128 * 64,
        ),
        (
            {
                "m.weight": ("U8", 4096, 1),
                "m.weight.absmax": ("U8", 128),
                "m.weight.quant_state.bitsandbytes__nf4": ("U8", 90),
            },
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            8192,
        ),
        (
            {"e.up_proj_blocks": ("U8", 2, 64, 4, 16), "e.up_proj_scales": ("U8", 2, 64, 4)},
            {"quantization_config": {"quant_method": "mxfp4"}},
            2 * 64 * 128,
        ),
        (
            {"m.weight": ("F8_E4M3", 256, 64), "m.weight_scale_inv": ("F32", 2, 1)},
            {"quantization_config": {"quant_method": "fp8"}},
            256 * 64,
        ),
    ],
)
def test_parameters_of_other_methods(
    specs: dict[str, tuple[Any, ...]], config: dict[str, Any], parameters: int
) -> None:
    tensors: dict[str, LazyTensor] = {
        name: Known(TensorSpec(dtype, tuple(shape)), b"") for name, (dtype, *shape) in specs.items()
    }
    weights = weights_of(modules_of(tensors, config), config, None).values()
    assert [(weight.parameters, weight.is_quantized) for weight in weights] == [(parameters, True)]


@pytest.fixture
def damaged(pylm: Path, tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint."""
    return shutil.copytree(pylm, tmp_path / "damaged")


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change tensors of the last shard and bring the index up to date."""
    path = max(folder.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    home: dict[str, str] = {}
    total = 0
    for shard in sorted(folder.glob("*.safetensors")):
        found = load_file(shard)
        home |= dict.fromkeys(found, shard.name)
        total += sum(tensor.nbytes for tensor in found.values())
    write_index(folder, home, total)


NORM = "model.norm.weight"
DAMAGE: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "total_size": (
        lambda f: edit_json(f / INDEX, lambda index: index["metadata"].update(total_size=7)),
        f"{INDEX}: its total_size is 7, and the tensors have 6033920 bytes.",
    ),
    "stray": (
        lambda f: shutil.copy(f / "model-00001-of-00006.safetensors", f / "old.safetensors"),
        "left out, since the checkpoint does not name them: old.safetensors.",
    ),
    "other weights": (
        lambda f: (f / "pytorch_model.bin").write_text(""),
        "left out, since they are weights of other formats: pytorch_model.bin.",
    ),
    "stale index": (
        lambda f: edit_json(f / INDEX, lambda index: index["weight_map"].pop("model.norm.weight")),
        "tensor 'model.norm.weight' is left out: model.safetensors.index.json does not place it",
    ),
    "no config": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "empty": (
        lambda f: change_tensors(f, lambda t: t.update(nothing=t[NORM][:0])),
        "one tensor without elements: nothing.",
    ),
    "odd dtype": (
        lambda f: change_tensors(f, lambda t: t.update({NORM: t[NORM].double()})),
        f"odd dtype F64: one tensor: {NORM}.",
    ),
    "mixed dtypes": (
        lambda f: change_tensors(f, lambda t: t.update({NORM: t[NORM].float()})),
        f"mixed dtypes: one tensor in F32 beside BF16: {NORM}.",
    ),
    "declared dtype": (
        lambda f: edit_json(f / "config.json", lambda config: config.update(dtype="float16")),
        "config.json: its dtype is float16, and no weight is.",
    ),
    "tied with a head": (
        lambda f: change_tensors(f, lambda t: t.update({"lm_head.weight": t[NORM].repeat(8, 1)})),
        "lm_head: it is stored, and config.json ties it to the embedding.",
    ),
    "untied without a head": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(tie_word_embeddings=False)),
        "lm_head: it is not stored, and config.json does not tie it to the embedding.",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_anomaly_is_told(damaged: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    assert look(damaged)["anomalies"] == []
    damage(damaged)
    found = look(damaged)["anomalies"]
    assert any(expected in anomaly for anomaly in found), found
    # A tensor that the index forgets is missing from its total_size, too.
    assert len(found) == (2 if name == "stale index" else 1), found


QUANTIZED_DAMAGE: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "undeclared": (lambda c: c.pop("quantization_config"), "config.json does not say so"),
    "left alone": (
        lambda c: c["quantization_config"]["ignore"].append("model.layers.0.mlp.up_proj"),
        "quantized, but config.json leaves them alone: model.layers.0.mlp.up_proj.",
    ),
    "not quantized": (
        lambda c: c["quantization_config"].update(ignore=["lm_head"]),
        "not quantized, though config.json says so: model.layers.0.mlp.down_proj, "
        "model.layers.1.mlp.down_proj.",
    ),
    "unknown key": (
        lambda c: c["quantization_config"]["config_groups"]["W3A16"]["weights"].update(colour=1),
        "config.json: W3A16: unknown keys colour.",
    ),
}


@pytest.mark.parametrize("name", QUANTIZED_DAMAGE)
def test_each_anomaly_of_a_quantized_checkpoint_is_told(
    tiny: Models, tmp_path: Path, name: str
) -> None:
    damage, expected = QUANTIZED_DAMAGE[name]
    run_quantize(tiny("llama", hidden=128).folder, tmp_path, "W3A16", ignore=["re:.*down_proj"])
    assert look(tmp_path)["anomalies"] == []
    edit_json(tmp_path / "config.json", damage)
    (found,) = look(tmp_path)["anomalies"]
    assert expected in found


def test_sparse_packing_of_old_is_told(tiny: Models, tmp_path: Path) -> None:
    run_quantize(tiny("llama", hidden=128).folder, tmp_path, "W3A16", ignore=["re:.*down_proj"])
    (path, *_) = sorted(tmp_path.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("weight_packed"))
    rows = tensors[name].shape[0]
    tensors[name] = torch.zeros(rows, 13, dtype=torch.int32)  # 10 elements a word, not 128 * 3 / 32
    save_file(tensors, path)
    (tmp_path / INDEX).unlink()
    (told,) = look(tmp_path)["anomalies"]
    assert told.endswith(f"misread today: {name.removesuffix('.weight_packed')}.")


def test_what_cannot_be_opened_is_an_error(ctcli: Ctcli, damaged: Path) -> None:
    shard = damaged / "model-00003-of-00006.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    done = ctcli("inspect", damaged)
    assert (done.returncode, done.stdout) == (1, "")
    assert "model-00003-of-00006.safetensors" in done.stderr
    assert "truncated" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("next: ")


def test_unknown_families_and_checkpoints_without_config_are_told(tmp_path: Path) -> None:
    shards = {"model.safetensors": {"embeddings.weight": array(8, 4), "b.bias": array(4)}}
    folder = write_checkpoint(tmp_path, shards, index=False)
    edit_json(folder / "config.json", lambda config: config.update(model_type="lama"))
    data = look(folder)
    reasons = data["can_run"]["rotate R2"]["reasons"]
    assert "'lama' is not one whose architecture is known (near it: llama" in reasons[0]
    assert "--mapping FILE" in data["can_run"]["rotate R2"]["hint"]
    assert (data["family"], data["parameters"], data["tied"]) == ("lama", 36, None)
    (folder / "config.json").unlink()
    assert look(folder)["family"] is None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("rotate", "there is no config.json, which says what type of model this is."),
        ("export-bin", "it has no config.json, which describes the model."),
    ],
)
def test_a_missing_config_is_named(
    ctcli: Ctcli, pylm: Path, tmp_path: Path, command: str, said: str
) -> None:
    source = shutil.copytree(pylm, tmp_path / "source")
    (source / "config.json").unlink()
    told = ctcli(command, source, tmp_path / "out")
    assert told.returncode == 1
    assert said in told.stderr


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def test_of_a_hub_only_headers_are_asked_for(ctcli: Ctcli, hub: Hub, tmp_path: Path) -> None:
    # Untied, with a head like the embedding: export-bin itself would compare their bytes.
    source = make("llama", tmp_path / "source", hidden=256, attention_bias=False, mlp_bias=False)
    sha = hub.add("org/model", source)
    done = ctcli(
        "inspect", "org/model", "--revision", "main", "--json", env=hub.env(tmp_path / "home")
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["commit"] == sha
    local = json.loads(ctcli("inspect", source, "--json").stdout)
    assert {**data, "source": "", "commit": None} == {**local, "source": ""}
    shards = sorted(source.glob("*.safetensors"))
    assert all(path.stat().st_size > 2 * HEADER_READ for path in shards)
    asked = [request for request in hub.requests(".safetensors") if request.path.startswith("/cdn")]
    assert len(asked) == len(shards)
    assert {request.range for request in asked} == {f"bytes=0-{HEADER_READ - 1}"}
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_tensors_are_listed_as_safetensors_sees_them(ctcli: Ctcli, pylm: Path) -> None:
    lines = ctcli("inspect", pylm, "--tensors").stdout.splitlines()
    assert lines[:2] == [f"inspect: {pylm}", "38 tensors, 6.03 MB"]
    shown = {line.split()[0]: line.split()[-1] for line in lines[2:]}
    home = json.loads((pylm / INDEX).read_text())["weight_map"]
    assert shown == home
    listed = json.loads(ctcli("inspect", pylm, "--tensors", "--json").stdout)["listed"]
    for entry in listed:
        with safe_open(pylm / entry["shard"], framework="pt") as file:
            tensor = file.get_tensor(entry["name"])
        assert (entry["shape"], entry["bytes"]) == (list(tensor.shape), tensor.nbytes)
        assert entry["dtype"] == "BF16"
    assert len(listed) == len(home)


def test_a_pattern_chooses_tensors(ctcli: Ctcli, pylm: Path) -> None:
    done = ctcli("inspect", "--tensors", pylm, r"re:.*layers\.1\.mlp")
    names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert names == [f"model.layers.1.mlp.{part}_proj.weight" for part in ("down", "gate", "up")]
    exact = ctcli("inspect", pylm, "--tensors", "model.norm.weight").stdout.splitlines()
    assert exact[1] == "1 tensor, 512 B"
    assert exact[2].split() == [
        *("model.norm.weight", "BF16", "[256]", "512", "B", "model-00006-of-00006.safetensors")
    ]
    refused = ctcli("inspect", pylm, "--tensors", "model.morn")
    assert refused.returncode == 1
    assert "'model.morn' matches no tensor; near names: model.norm.weight" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stats", "--sort", "size"), "--sort, --stats goes with --tensors"),
        (("--revision", "v1"), "--revision is for hub ids"),
        (("--overwrite",), "there is no option --overwrite"),
    ],
)
def test_wrong_usage(ctcli: Ctcli, pylm: Path, arguments: tuple[str, ...], said: str) -> None:
    done = ctcli("inspect", pylm, *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_people_are_told_all_of_it(ctcli: Ctcli, tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama", hidden=128)
    run_quantize(model.folder, tmp_path, "W8A16", on_indivisible="smaller-group")
    edit_json(
        tmp_path / "config.json",
        lambda c: c["quantization_config"]["ignore"].append("model.layers.0.self_attn.q_proj"),
    )
    lines = ctcli("inspect", tmp_path).stdout.splitlines()
    assert "  family        llama (LlamaForCausalLM)" in lines
    assert "  rotate R4   no, as above" in lines
    assert "  W8A16       11 modules  INT8 in groups of 128; pack-quantized" in lines
    vllm = next(line for line in lines if line.startswith("  vLLM"))
    assert vllm.startswith("  vLLM          no: model.layers.0.self_attn.{q_proj,k_proj,v_proj}: ")
    assert "  transformers  yes" in lines
    assert lines[-2] == "anomalies"
    assert lines[-1].endswith("leaves them alone: model.layers.0.self_attn.q_proj.")
    for heading in ("can it run", "does it load in", "shards", "quantization (compressed-tensors)"):
        assert heading in lines


@pytest.mark.parametrize(
    ("schemes", "machine"),
    [
        (("W8A8",), "any machine"),
        (("W8A8", "re:.*mlp.*=W6A16"), "a GPU"),
        (("FP8_BLOCK", "re:.*mlp.*=W4A16"), "a GPU, or a CPU with AMX"),
    ],
)
def test_vllm_is_said_to_need_what_all_groups_need(
    tmp_path: Path, schemes: tuple[str, ...], machine: str
) -> None:
    # Values of 128 rows end with a block of their own.
    source = make("llama", tmp_path / "source", hidden=128, intermediate_size=128, head_dim=128)
    run_quantize(source, tmp_path / "out", *schemes)
    quantization = inspect(open_checkpoint(str(tmp_path / "out"))).quantization
    assert quantization is not None
    assert (quantization.machine, quantization.refusals["vllm"]) == (machine, [])
    (line,) = [line for s in sections(tmp_path / "out") for line in s.lines if line[0] == "vLLM"]
    assert line[1] == f"yes, on {machine}"


def sections(folder: Path) -> list[ResultSection]:
    return sections_of(inspect(open_checkpoint(str(folder))))


def test_lines_stay_whole_where_there_is_no_terminal(ctcli: Ctcli, pylm: Path) -> None:
    narrow = ctcli("inspect", pylm, env={"COLUMNS": "60"}).stdout
    assert narrow == ctcli("inspect", pylm).stdout
    assert max(map(len, narrow.splitlines())) > 60


def test_a_narrow_terminal_gets_lines_that_fit(tiny: Models, tmp_path: Path) -> None:
    run_quantize(tiny("llama", hidden=128).folder, tmp_path, "W8A8")
    shown = run_in_terminal(60, "inspect", tmp_path).splitlines()
    long = [line for line in shown if len(line) > 60]
    assert long == [line for line in shown if "inspect: " in line]
    place = shown.index("  W8A8        14 modules  INT8 by channel; inputs INT8 by")
    assert shown[place + 1] == " " * 26 + "token; int-quantized"
