"""`ctcli reindex`: sets together, nothing lost, bytes equal."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcli.checkpoint.sharding import natural_key
from ctcli.checkpoint.value import Checkpoint, Origin, Shard
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.fused import FUSED_ROLES, fused_sets
from ctcli.rewrites.reindex import ReindexOptions, reindex
from ctcli.storage.local import LocalFile
from tests.conftest import Ctcli
from tests.helpers.checkpoints import (
    Arrays,
    array,
    file_hashes,
    tensor_hashes,
    write_checkpoint,
    write_raw,
)

MODULES = (
    "model.embed_tokens",
    "model.norm",
    "model.layers.0.mlp.down_proj",
    *(f"model.layers.{n}.self_attn.{m}" for n in (0, 2, 10) for m in FUSED_ROLES[0].members),
    *(f"model.layers.1.self_attn.{m}" for m in (*FUSED_ROLES[1].members, "q_b_proj")),
    *(f"layers.3.attn.{m}" for m in (*FUSED_ROLES[2].members, "wo")),
    *(f"model.layers.0.mlp.experts.{e}.{m}" for e in (0, 11) for m in FUSED_ROLES[3].members),
    *(f"model.layers.0.mlp.shared_experts.{m}" for m in FUSED_ROLES[3].members),
    *(f"model.layers.4.block_sparse_moe.experts.0.{m}" for m in ("w1", "w2", "w3")),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    """Any subset of modules, each with some tensors, spread over shards at random."""
    modules = draw(st.lists(st.sampled_from(MODULES), min_size=1, unique=True))
    names = [
        f"{module}.{leaf}"
        for module in modules
        for leaf in draw(st.sets(st.sampled_from(["weight", "bias", "weight_scale"]), min_size=1))
    ]
    count = draw(st.integers(1, 6))
    shards: list[dict[str, Stored]] = [{} for _ in range(count)]
    for name in names:
        i = draw(st.integers(0, count - 1))
        spec = TensorSpec("BF16", (draw(st.integers(0, 1000)),))
        file = LocalFile(f"model-{i + 1:05d}-of-{count:05d}.safetensors", Path(), 0, "")
        shards[i][name] = Stored(spec, file, 0)
    stored = tuple(
        Shard(f"model-{i:05d}-of-{count:05d}.safetensors", tensors, {})
        for i, tensors in enumerate(shards, start=1)
        if tensors
    )
    origin = Origin("test", None, "")
    return Checkpoint(
        stored, {s.name: s for s in stored}, {}, {}, origin, "model.safetensors.index.json", {}
    )


@given(checkpoints())
def test_every_set_ends_in_one_shard_and_no_tensor_is_lost_or_doubled(source: Checkpoint) -> None:
    result, _ = reindex(source, ReindexOptions())
    assert sorted(result.tensors(), key=str) == sorted(source.tensors(), key=str)
    home = result.home()
    for fused in fused_sets(home):
        assert len({home[name] for name in fused.tensors}) == 1, fused.name
    assert all(shard.tensors for shard in result.shards)
    assert result.nbytes == source.nbytes


@given(checkpoints())
def test_a_set_goes_where_most_of_its_bytes_are_and_nothing_else_moves(source: Checkpoint) -> None:
    result, report = reindex(source, ReindexOptions())
    fused_names = {name for fused in fused_sets(source.home()) for name in fused.tensors}
    stayed = {s.name: s.tensors.keys() - fused_names for s in source.shards}
    left = [s.tensors.keys() - fused_names for s in result.shards]
    assert all(names in left for names in stayed.values() if names)
    sizes = {name: tensor.spec.nbytes for name, tensor in source.tensors()}
    for move in report.moves:
        held = [
            sum(sizes[name] for name in shard.tensors.keys() & set(move.fused.tensors))
            for shard in source.shards
        ]
        assert move.nbytes == sum(held) - max(held)


@given(checkpoints())
def test_reindexing_twice_changes_nothing_more(source: Checkpoint) -> None:
    once, _ = reindex(source, ReindexOptions())
    twice, report = reindex(once, ReindexOptions())
    assert (twice.shards, report.moves) == (once.shards, ())


@given(checkpoints(), st.integers(1, 20_000))
def test_cut_to_size_keeps_natural_order_and_never_splits_a_set(
    source: Checkpoint, limit: int
) -> None:
    result, _ = reindex(source, ReindexOptions(max_shard_size=limit))
    assert sorted(result.tensors(), key=str) == sorted(source.tensors(), key=str)
    home = result.home()
    units = [set(fused.tensors) for fused in fused_sets(home)]
    for unit in units:
        assert len({home[name] for name in unit}) == 1
    for shard in result.shards:
        modules = {name.rpartition(".")[0] for name in shard.tensors}
        one_unit = len(modules) == 1 or any(shard.tensors.keys() <= unit for unit in units)
        assert shard.nbytes <= limit or one_unit
    firsts = [min(map(natural_key, shard.tensors)) for shard in result.shards]
    assert firsts == sorted(firsts)


def straddling(folder: Path) -> Path:
    """q, k and v in three shards, far apart; one shard with nothing but a partner."""
    attention = "model.layers.0.self_attn."
    shards: dict[str, Arrays] = {
        "model-00001-of-00004.safetensors": {
            "model.embed_tokens.weight": array(64, 16, seed=1),
            attention + "q_proj.weight": array(16, 16, seed=2),
            attention + "q_proj.bias": array(16, seed=3),
        },
        "model-00002-of-00004.safetensors": {attention + "k_proj.weight": array(8, 16, seed=4)},
        "model-00003-of-00004.safetensors": {"model.norm.weight": array(16, seed=5)},
        "model-00004-of-00004.safetensors": {
            "lm_head.weight": array(64, 16, seed=6),
            attention + "v_proj.weight": array(8, 16, seed=7),
        },
    }
    return write_checkpoint(folder, shards)


def test_a_set_over_three_shards_is_gathered_and_an_empty_shard_disappears(
    cli: Ctcli, tmp_path: Path
) -> None:
    source = straddling(tmp_path / "source")
    done = cli("reindex", source, tmp_path / "out", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["fused_sets"] == report["sets_moved"] == 1
    assert report["moves"] == [
        {
            "set": "model.layers.0.self_attn.{q_proj,k_proj,v_proj}",
            "from": [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 4)],
            "to": "model-00001-of-00003.safetensors",
            "bytes": 2 * 8 * 16 * 4,
        }
    ]
    assert report["shards_rewritten"] == 2
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(source)
    before, after = file_hashes(source), file_hashes(tmp_path / "out")
    moved_up = "model-00002-of-00003.safetensors"
    assert after[moved_up] == before["model-00003-of-00004.safetensors"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = sum((tmp_path / "out" / f).stat().st_size for f in set(index["weight_map"].values()))
    assert 0 < total - index["metadata"]["total_size"] < 3000


def test_max_shard_size_lays_out_anew_without_loss(cli: Ctcli, tmp_path: Path) -> None:
    source = straddling(tmp_path / "source")
    done = cli("reindex", source, tmp_path / "out", "--max-shard-size", "5KB")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(source)


def test_a_single_file_is_still_written_and_says_that_nothing_moved(
    cli: Ctcli, tmp_path: Path
) -> None:
    tensors = {f"layers.0.attn.{m}.weight": array(4, 4) for m in FUSED_ROLES[0].members}
    source = write_checkpoint(tmp_path / "source", {"model.safetensors": tensors}, index=False)
    done = cli("reindex", source, tmp_path / "out")
    assert done.returncode == 0
    assert "sets moved        none" in done.stdout
    made = file_hashes(tmp_path / "out")
    assert made.pop("ctcli_recipe.toml")
    assert made == file_hashes(source)


def test_several_files_without_an_index_get_one(cli: Ctcli, tmp_path: Path) -> None:
    source = straddling(tmp_path / "source")
    (source / "model.safetensors.index.json").unlink()
    done = cli("reindex", source, tmp_path / "out")
    assert done.returncode == 0
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(source)


@pytest.mark.parametrize(
    ("name", "is_found"), [("weights", False), ("consolidated", True), ("model", True)]
)
def test_one_file_gets_an_index_where_no_loader_looks_for_its_name(
    cli: Ctcli, tmp_path: Path, name: str, is_found: bool
) -> None:
    shards = {f"{name}.safetensors": {"a": array(3)}}
    source = write_checkpoint(tmp_path / "source", shards, index=False)
    assert cli("reindex", source, tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() != is_found
    assert "it has no index" not in cli("verify", tmp_path / "out").stdout


def test_link_shares_unchanged_shards_and_copies_the_rest(cli: Ctcli, tmp_path: Path) -> None:
    source = straddling(tmp_path / "source")
    assert cli("reindex", source, tmp_path / "out", "--link").returncode == 0
    unchanged, out = source / "model-00003-of-00004.safetensors", tmp_path / "out"
    assert (out / "model-00002-of-00003.safetensors").samefile(unchanged)
    changed = (out / "model-00001-of-00003.safetensors").stat()
    assert changed.st_nlink == 1
    assert tensor_hashes(out) == tensor_hashes(source)


def test_link_copies_where_the_file_system_does_not_allow_it(cli: Ctcli, tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    assert shared_memory.stat().st_dev != tmp_path.stat().st_dev
    source = straddling(tmp_path / "source")
    out = shared_memory / f"ctcli-test-{tmp_path.name}"
    try:
        done = cli("reindex", source, out, "--link")
        assert done.returncode == 0, done.stderr
        assert tensor_hashes(out) == tensor_hashes(source)
    finally:
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


def test_dry_run_says_the_same_and_writes_nothing(cli: Ctcli, tmp_path: Path) -> None:
    source = straddling(tmp_path / "source")
    dry = json.loads(cli("reindex", source, tmp_path / "out", "--dry-run", "--json").stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    real = json.loads(cli("reindex", source, tmp_path / "out", "--json").stdout)
    for key in ("fused_sets", "sets_moved", "bytes_moved", "shards_rewritten", "moves"):
        assert dry[key] == real[key]
    sizes = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert dry["bytes_to_write"] == real["bytes_written"] == sizes


@pytest.mark.parametrize("option", [(), ("--max-shard-size", "1MB")])
def test_pylm_gives_the_same_logits_in_transformers(
    cli: Ctcli, pylm: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert cli("reindex", pylm, tmp_path / "out", *option).returncode == 0
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(pylm)
    tokens = torch.arange(256).reshape(2, 128)
    with torch.no_grad():
        expected, actual = (
            AutoModelForCausalLM.from_pretrained(path)(tokens).logits
            for path in (pylm, tmp_path / "out")
        )
    assert torch.equal(actual, expected)


def test_the_recipe_tells_the_source_and_continues_its_history(
    cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    import tomllib

    cli("reindex", pylm, tmp_path / "a")
    cli("reindex", tmp_path / "a", tmp_path / "b", "--max-shard-size", "2MB")
    recipe = tomllib.loads((tmp_path / "b" / "ctcli_recipe.toml").read_text())
    assert recipe["source"]["name"] == "a"
    assert recipe["history"] == [{"use": "reindex"}]
    assert recipe["steps"] == [{"use": "reindex", "max_shard_size": 2_000_000}]


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    cli: Ctcli, tmp_path: Path
) -> None:
    size = 2 * shutil.disk_usage(tmp_path).free // 4 * 4
    header = {"a.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    file = write_raw(tmp_path / "source" / "model.safetensors", header)
    os.truncate(file, file.stat().st_size + size)  # a hole takes no space
    done = cli("reindex", tmp_path / "source", tmp_path / "out")
    assert done.returncode == 1
    assert "bytes are needed there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
