"""Commands that compute, killed by SIGKILL: the same command continues to the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Ctcli
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint

COMMANDS = {
    "quantize": ("quantize", "--scheme", "NVFP4A16"),
    "fuse-norms": ("fuse-norms",),
    "rotate": ("rotate", "--transform-type", "random-hadamard", "--seed", "1"),
    "run": ("run", str(ROOT / "tests/bench/recipes/rotate-NVFP4A16.toml")),
}
LAYERS = 6
ROLES = [f"self_attn.{role}_proj" for role in "qkvo"]
ROLES += [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
NORMS = ("input_layernorm", "post_attention_layernorm")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Llama of 86 MB in six shards, each with members of fused sets of its neighbours."""
    values = array(1024, 1024).astype("float16")
    names = [f"model.layers.{n}.{role}.weight" for n in range(LAYERS) for role in ROLES]
    shards = [
        {name: np.roll(values, 31 * i + j) for j, name in enumerate(names[i::LAYERS])}
        for i in range(LAYERS)
    ]
    gains = [f"model.layers.{n}.{norm}.weight" for n in range(LAYERS) for norm in NORMS]
    shards[0] |= {name: 1 + abs(values[0]) / 4 for name in (*gains, "model.norm.weight")}
    shards[-1]["model.embed_tokens.weight"] = values[:512]
    folder = write_checkpoint(
        tmp_path_factory.mktemp("killed") / "source",
        {
            f"model-{i:05d}-of-{LAYERS:05d}.safetensors": shard
            for i, shard in enumerate(shards, start=1)
        },
        others={"config.json": json.dumps(CONFIG)},
    )
    yield folder
    shutil.rmtree(folder)


def complete_files(destination: Path) -> int:
    """How many files the journal beside `destination` calls complete."""
    journal = destination.with_name(f".{destination.name}.ctcli-partial") / "journal"
    with suppress(FileNotFoundError):
        _, *lines = journal.read_text().splitlines(keepends=True) or [""]
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return sum(len(entry) == 2 for entry in entries)  # those of parts are longer
    return 0


def kill_after(files: int, destination: Path, *arguments: str) -> None:
    """Start ctcli and kill it as soon as so many files are complete."""
    process = subprocess.Popen([sys.executable, "-m", "ctcli", *arguments])
    while complete_files(destination) < files:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert not destination.exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_killed_run_continues_to_the_same_bytes(
    ctcli: Ctcli, source: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    destination = tmp_path / "out"
    assert ctcli(*words, source, tmp_path / "undisturbed").returncode == 0
    arguments = (*words, str(source), str(destination), "--num-workers", "1")
    complete = 0
    for files in (1, 3):
        kill_after(files, destination, *arguments)
        assert complete_files(destination) >= complete, "a complete file was forgotten"
        complete = complete_files(destination)
    done = ctcli(*arguments, "--json")
    assert json.loads(done.stdout)["files_continued"] == complete >= 3
    assert file_hashes(destination) == file_hashes(tmp_path / "undisturbed")
