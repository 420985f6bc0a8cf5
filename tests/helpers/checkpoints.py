"""Small checkpoints for tests, written by the safetensors package, and readings of results."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from ctcli.checkpoint.value import RECIPE_NAME

Arrays = Mapping[str, NDArray[Any]]


def array(*shape: int, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    """Random values, different for each seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def write_checkpoint(
    folder: Path,
    shards: Mapping[str, Arrays],
    *,
    index: bool = True,
    others: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint of `shards` (file name to tensors) and other files, as text."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for name, tensors in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if index:
        total = sum(a.nbytes for tensors in shards.values() for a in tensors.values())
        write_index(folder, weight_map, total)
    for name, text in {"config.json": '{"model_type": "llama"}', **(others or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str], total_size: int = 0) -> None:
    """Write `model.safetensors.index.json`."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_raw(path: Path, header: bytes | Mapping[str, Any], data: bytes = b"") -> Path:
    """Write a safetensors file from a header as given, sound or not, and data bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def tensor_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 over dtype, shape and bytes of every tensor, read by the safetensors package.

    Where there is an index, it must agree with the files both ways.
    """
    found: dict[str, str] = {}
    home: dict[str, str] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        with safe_open(path, framework="np") as file:
            assert set(file.keys()) == header.keys() - {"__metadata__"}
        for name, entry in header.items():
            if name != "__metadata__":
                assert name not in found, f"{name} is in two files"
                begin, end = entry["data_offsets"]
                digest = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
                digest.update(raw[8 + length + begin : 8 + length + end])
                found[name] = digest.hexdigest()
                home[name] = path.relative_to(folder).as_posix()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        assert json.loads(index.read_text())["weight_map"] == home
    return found


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hashes_but_card(folder: Path) -> dict[str, str]:
    """The same without the model card, in which a hub's says more than one on a disk."""
    return {name: digest for name, digest in file_hashes(folder).items() if name != "README.md"}


def assert_same_but_for_device(one: Path, other: Path) -> None:
    """Both hold the same files; only the recipe of one names the device that it was made on."""
    hashes, others = file_hashes(one), file_hashes(other)
    assert hashes.pop(RECIPE_NAME) != others.pop(RECIPE_NAME)
    assert hashes == others
