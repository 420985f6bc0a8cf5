"""What SRC names, as people write it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ctcli.errors import CtcliError, UsageError
from ctcli.storage.naming import SourceName, parse_source
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli

PAGE = "https://hub.example/org/name"
NAMES = {
    "org/name": ("org/name", None, ""),
    "org/name@v1.0": ("org/name", "v1.0", ""),
    "hf://org/name": ("org/name", None, ""),
    "hf://org/name@v1.0": ("org/name", "v1.0", ""),
    "hf://org/name/transformer": ("org/name", None, "transformer"),
    PAGE: ("org/name", None, ""),
    f"{PAGE}/": ("org/name", None, ""),
    f"{PAGE}?library=vllm": ("org/name", None, ""),
    f"{PAGE}/tree/main": ("org/name", "main", ""),
    f"{PAGE}/tree/refs%2Fpr%2F1": ("org/name", "refs/pr/1", ""),
    f"{PAGE}/tree/v1.0/text_encoder/": ("org/name", "v1.0", "text_encoder"),
    f"{PAGE}/blob/main/config.json": ("org/name", "main", ""),
    f"{PAGE}/resolve/main/unet/model.safetensors": ("org/name", "main", "unet"),
}


@pytest.mark.parametrize("text", NAMES)
def test_models_on_a_hub(text: str) -> None:
    repo, revision, folder = NAMES[text]
    assert parse_source(text) == SourceName(text, None, repo, revision, folder)


@pytest.mark.parametrize(
    "text",
    [
        *("https://hub.example/org", "https://hub.example/datasets/org/name", f"{PAGE}/settings"),
        *("hf://", "hf://name", "name", "a/b/c", "./org/name", "/org/name", "org/name@"),
    ],
)
def test_what_names_nothing(text: str) -> None:
    with pytest.raises(CtcliError):
        parse_source(text)


def test_a_directory_comes_before_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    assert parse_source("org/name@v1").path == Path("org/name@v1")
    with pytest.raises(UsageError, match="--revision is for hub ids"):
        parse_source("org/name@v1", "main")


def test_a_revision_is_given_once() -> None:
    assert parse_source("org/name", "v1").revision == "v1"
    assert parse_source("org/name@v1", "v1").revision == "v1"
    with pytest.raises(UsageError, match="SRC names the revision v1"):
        parse_source("org/name@v1", "v2")


def test_near_names_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "Llama-3-8B").mkdir(parents=True)
    with pytest.raises(CtcliError, match="Near names: models/Llama-3-8B") as raised:
        parse_source("./models/Llama-3-8b")
    assert "continues" not in raised.value.hint


def test_a_hub_that_does_not_have_it_is_no_false_hope(
    cli: Ctcli, pylm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pylm, tmp_path / "models" / "pylm")
    monkeypatch.chdir(tmp_path)
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    done = cli("inspect", "models/pyln", env=env)
    assert done.returncode == 1
    assert "Near names here: models/pylm." in done.stderr
    assert "continues where it stopped" not in done.stderr


def test_a_folder_inside(pylm: Path, tmp_path: Path) -> None:
    shutil.copytree(pylm, tmp_path / "pipeline" / "transformer")
    inside = open_checkpoint(str(tmp_path / "pipeline"), subfolder="transformer")
    assert inside.specs == open_checkpoint(str(pylm)).specs
    with pytest.raises(CtcliError, match="it has no folder unet"):
        open_checkpoint(str(tmp_path / "pipeline"), subfolder="unet")


def test_one_weights_file_is_a_checkpoint(pylm: Path) -> None:
    shard = next(iter(open_checkpoint(str(pylm)).shards))
    alone = open_checkpoint(str(pylm / shard.name))
    assert alone.specs.keys() == shard.tensors.keys()
    assert alone.config["model_type"] == "llama"


FILES = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(64), "a GGUF file, which llama.cpp reads"),
    "pickle": (b"PK\3\4" + bytes(64), "a PyTorch file of pickled weights"),
    "page": (b"<!DOCTYPE html><html>" + bytes(64), "a web page"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    content, words = FILES[kind]
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "model.gguf").write_bytes(content)
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "model.gguf"):
        with pytest.raises(CtcliError, match=words):
            open_checkpoint(str(source))


def test_what_is_no_file_is_not_waited_for(ctcli: Ctcli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: not a directory" in ctcli("inspect", tmp_path / "pipe").stderr


def test_a_folder_of_ggufs_and_an_adapter_are_called_what_they_are(
    pylm: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CtcliError, match=r"GGUF files, which llama.cpp reads: x.gguf"):
        open_checkpoint(str(tmp_path))
    shard = next(pylm.glob("*.safetensors"))
    shutil.copy(shard, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CtcliError, match="a LoRA adapter"):
        open_checkpoint(str(tmp_path))
