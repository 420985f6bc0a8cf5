"""Commands that compute, killed by SIGKILL: the same command continues to the same bytes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest

from tests.conftest import ROOT, Ctcli
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint
from tests.helpers.dying import Moment, end_at

COMMANDS = {
    "quantize": ("quantize", "--scheme", "NVFP4A16"),
    "fuse-norms": ("fuse-norms",),
    "equalize": ("equalize",),
    "rotate": ("rotate", "--transform-type", "random-hadamard", "--seed", "1"),
    "run": ("run", str(ROOT / "tests/bench/recipes/rotate-NVFP4A16.toml")),
}
LAYERS, WIDTH = 6, 256
ROLES = [f"self_attn.{role}_proj" for role in "qkvo"]
ROLES += [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
NORMS = ("input_layernorm", "post_attention_layernorm")
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 5.6 MB in six shards, each with members of fused sets of its neighbours."""
    values = array(WIDTH, WIDTH).astype("float16")
    names = [f"model.layers.{n}.{role}.weight" for n in range(LAYERS) for role in ROLES]
    shards = [
        {name: np.roll(values, 31 * i + j) for j, name in enumerate(names[i::LAYERS])}
        for i in range(LAYERS)
    ]
    gains = [f"model.layers.{n}.{norm}.weight" for n in range(LAYERS) for norm in NORMS]
    shards[0] |= {name: 1 + abs(values[0]) / 4 for name in (*gains, "model.norm.weight")}
    shards[-1]["model.embed_tokens.weight"] = values[: WIDTH // 2]
    return write_checkpoint(
        tmp_path_factory.mktemp("killed") / "source",
        {
            f"model-{i:05d}-of-{LAYERS:05d}.safetensors": shard
            for i, shard in enumerate(shards, start=1)
        },
        others={"config.json": json.dumps(CONFIG)},
    )


def complete_files(destination: Path) -> int:
    """How many files the journal beside `destination` calls complete."""
    journal = destination.with_name(f".{destination.name}.ctcli-partial") / "journal"
    with suppress(FileNotFoundError):
        _, *lines = journal.read_text().splitlines(keepends=True) or [""]
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return sum(len(entry) == 2 for entry in entries)  # those of parts are longer
    return 0


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_killed_run_continues_to_the_same_bytes(
    ctcli: Ctcli, source: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    destination = tmp_path / "out"
    assert ctcli(*words, source, tmp_path / "undisturbed").returncode == 0
    arguments = (*words, str(source), str(destination), "--num-workers", "1")
    for further, complete in ((1, 1), (2, 3)):
        died = end_at(Moment("file", further), *arguments)
        assert died.returncode == -SIGKILL, died.stderr
        assert not destination.exists()
        assert complete_files(destination) == complete, "a complete file was forgotten"
    done = ctcli(*arguments, "--json")
    assert json.loads(done.stdout)["files_continued"] == 3
    assert file_hashes(destination) == file_hashes(tmp_path / "undisturbed")


def test_a_published_dst_is_left_alone_where_its_journal_is_gone(
    source: Path, tmp_path: Path, cli: Ctcli
) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.ctcli-partial"
    command = (*COMMANDS["quantize"], str(source), str(out))
    assert end_at(Moment("published", 1), *command).returncode == -SIGKILL
    made = {path.name: path.stat().st_ino for path in out.iterdir()}
    hashes = file_hashes(out)
    (partial / "journal").unlink()  # what clears up may be killed behind this
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == made
    assert file_hashes(out) == hashes
    assert not partial.exists()
