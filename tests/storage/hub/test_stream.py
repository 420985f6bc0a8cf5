"""`--stream`: shards of a hub come while others are worked on, and go after their last use."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Ctcli
from tests.engine.test_killed_rewrites import complete_files
from tests.helpers.checkpoints import file_hashes, hashes_but_card, write_checkpoint
from tests.helpers.hub import Hub, Request
from tests.helpers.hub.killing import run_until
from tests.helpers.processes import HANG_SECONDS
from tests.helpers.watching import Watch

REPO = "org/model"
HEADER = "bytes=0-65535"
SHARDS, LAYERS, WIDTH = 8, 8, 512
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
ROLES = [f"self_attn.{role}_proj" for role in "qkvo"]
ROLES += [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
NORMS = ("input", "post_attention")
COMMANDS = {
    "reindex": ("reindex",),
    "fuse-norms": ("fuse-norms",),
    "equalize": ("equalize",),
    "quantize": ("quantize", "--scheme", "NVFP4A16"),
    "run": ("run", str(ROOT / "tests/bench/recipes/rotate-FP8_DYNAMIC.toml")),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 30 MB in eight shards; fused sets straddle neighbours."""
    rng = np.random.default_rng(3)
    layers = [f"model.layers.{n}" for n in range(LAYERS)]
    names = ["lm_head.weight", *(f"{layer}.{role}.weight" for layer in layers for role in ROLES)]
    tensors = {name: rng.normal(size=(WIDTH, WIDTH)).astype("float16") for name in names}
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"][::-1].copy()
    norms = [f"{layer}.{norm}_layernorm" for layer in layers for norm in NORMS]
    for norm in (*norms, "model.norm"):
        tensors[f"{norm}.weight"] = rng.uniform(0.5, 2, WIDTH).astype("float16")
    every = sorted(tensors)
    step = -(-len(every) // SHARDS)
    shards = {
        f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors": {
            name: tensors[name] for name in every[i * step : (i + 1) * step]
        }
        for i in range(SHARDS)
    }
    return write_checkpoint(
        tmp_path_factory.mktemp("stream") / "source",
        shards,
        others={"config.json": json.dumps(CONFIG)},
    )


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:
    with Hub() as running:
        running.add(REPO, source)
        yield running


def shards_begun(hub: Hub) -> int:
    """Of how many shards more than the header was asked for."""
    asked = {r.path for r in hub.requests(".safetensors") if r.range and r.range != HEADER}
    return len({path.rpartition("/")[2] for path in asked})


def has_begun(hub: Hub, shards: int, _: Request) -> bool:
    """Whether so many shards were asked for."""
    return shards_begun(hub) >= shards


@pytest.mark.parametrize("command", COMMANDS)
def test_a_streamed_run_gives_the_same_bytes_and_leaves_nothing(
    command: str, hub: Hub, ctcli: Ctcli, tmp_path: Path
) -> None:
    words, home = COMMANDS[command], tmp_path / "home"
    plain = ctcli(*words, REPO, tmp_path / "plain", env=hub.env(home))
    assert not plain.returncode, plain.stderr
    watch = Watch(tmp_path / ".out.ctcli-partial", tmp_path / "seen")
    done = watch.run(*words, REPO, tmp_path / "out", "--stream", env=hub.env(tmp_path / "other"))
    assert not done.returncode, done.stderr
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "plain")
    assert 0 < watch.shards <= 5, "no more than the one in use, its neighbour, and those ahead"
    assert not list((tmp_path / "other").rglob("*.safetensors"))
    assert not (tmp_path / ".out.ctcli-partial").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_disk_is_bounded_and_a_smaller_bound_is_refused(
    command: str, hub: Hub, ctcli: Ctcli, tmp_path: Path
) -> None:
    words, env = COMMANDS[command], hub.env(tmp_path / "home")
    tight = ctcli(*words, REPO, tmp_path / "out", "--stream", "--max-disk", "1MB", env=env)
    assert tight.returncode == 1
    _, _, found = tight.stderr.partition("--max-disk: at least ")
    least = int(found.partition(" bytes")[0].replace(",", ""))
    watch = Watch(tmp_path / ".out.ctcli-partial", tmp_path / "seen")
    options = ("--stream", "--max-disk", str(least))
    done = watch.run(*words, REPO, tmp_path / "out", *options, env=env)
    assert not done.returncode, done.stderr
    assert 0 < watch.bytes <= least + 100_000, "beside files there is the journal"


def test_a_killed_streamed_run_continues(hub: Hub, ctcli: Ctcli, tmp_path: Path) -> None:
    words = COMMANDS["run"]
    plain = ctcli(*words, REPO, tmp_path / "plain", env=hub.env(tmp_path / "home"))
    assert not plain.returncode, plain.stderr
    hub.forget()
    env = hub.env(tmp_path / "other")
    arguments = (*words, REPO, str(tmp_path / "out"), "--stream", "--num-workers", "1")
    command = [sys.executable, "-m", "ctcli", *arguments]
    for shards in (1, 4, 6):
        begun = partial(has_begun, hub, shards)
        assert run_until(hub, begun, command, env=env) == -signal.SIGKILL
    done = ctcli(*arguments, env=env)
    assert not done.returncode, done.stderr
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "plain")


def test_work_goes_on_while_shards_are_on_their_way(hub: Hub, ctcli: Ctcli, tmp_path: Path) -> None:
    """The last shard comes only once all but the last few outputs are complete."""
    complete, end = 0, time.monotonic() + HANG_SECONDS / 2

    def hold() -> None:
        nonlocal complete
        while complete < SHARDS - 4 and time.monotonic() < end:
            time.sleep(0.01)
            complete = complete_files(tmp_path / "out")

    env = hub.env(tmp_path / "home")
    with hub.on(partial(has_begun, hub, SHARDS), hold):
        done = ctcli(*COMMANDS["quantize"], REPO, tmp_path / "out", "--stream", env=env)
    assert not done.returncode, done.stderr
    assert complete >= SHARDS - 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--stream",), "--stream is for hub ids"),
        (("--max-disk", "1GB"), "--max-disk goes with --stream"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(
    options: tuple[str, ...], words: str, source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    done = ctcli("reindex", source, tmp_path / "out", *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


def test_of_a_shard_that_is_mostly_left_out_only_pieces_come(
    source: Path, ctcli: Ctcli, tmp_path: Path
) -> None:
    """The index names the first layers alone; two shards hold nothing else of them."""
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    few = {n: s for n, s in index["weight_map"].items() if ".layers." not in n or ".0." in n}
    path.write_text(json.dumps({**index, "weight_map": few}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    sizes = {s: (folder / s).stat().st_size for s in few.values()}
    with Hub() as hub:
        hub.add(REPO, folder)
        env = hub.env(tmp_path / "home")
        plain = ctcli(*COMMANDS["run"], folder, tmp_path / "plain")
        assert not plain.returncode, plain.stderr
        dry = ctcli(
            *COMMANDS["run"], REPO, tmp_path / "out", "--stream", "--dry-run", "--json", env=env
        )
        hub.forget()
        done = ctcli(*COMMANDS["run"], REPO, tmp_path / "out", "--stream", env=env)
        assert not done.returncode, done.stderr
        sent = hub.bytes_sent(".safetensors")
    hashes = [hashes_but_card(tmp_path / name) for name in ("plain", "out")]
    for each in hashes:
        del each["ctcli_recipe.toml"]  # it names the source
    assert hashes[0] == hashes[1]
    headers = (65_536 + 400) * len(sizes)  # and the answer that leads to where the file is
    assert json.loads(dry.stdout)["bytes_to_download"] + headers >= sent
    assert sent < sum(sizes.values()) / 2
