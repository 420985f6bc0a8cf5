"""`ctcli verify` in this process, and ways to damage a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctcli.checkpoint.value import Checkpoint
from ctcli.verifying.findings import Finding, Verification
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.scanning import scan_here
from ctcli.verifying.verification import verify

Damage = Callable[[Path], object]
INDEX = "model.safetensors.index.json"


def run_verify(directory: Path, source: Checkpoint | None = None, **options: Any) -> Verification:
    """Verify against a source, if there is one; options are those of `VerifyOptions`."""
    against = source.origin.name if source else None
    chosen = VerifyOptions(against=against, **{"num_workers": 2, **options})
    scan = partial(scan_here, options=chosen, progress=lambda *_: nullcontext(lambda _: None))
    return verify(directory, chosen, scan, source)


def lines(found: Verification) -> list[str]:
    """The differences, as people see them."""
    return [line(finding) for finding in found.findings]


def line(finding: Finding) -> str:
    """A difference as people see it."""
    return f"{finding.kind} {finding.where}: {finding.message}"


def copy_of(source: Path, folder: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(source, folder / "damaged"))


def shard_of(folder: Path, name: str) -> str:
    """The file that holds a tensor."""
    index = json.loads((folder / INDEX).read_text())
    return str(index["weight_map"][name])


def rewrite_shard(folder: Path, shard: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Save a weights file again after `change`; the index stays as it is."""
    with safe_open(folder / shard, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, folder / shard, metadata={"format": "pt"})


def edit(name: str, change: Callable[[Tensor], Tensor | None]) -> Damage:
    """Change a tensor, in place or for another one."""

    def damage(folder: Path) -> None:
        def on(tensors: dict[str, Tensor]) -> None:
            tensor = tensors[name].clone()
            found = change(tensor)
            tensors[name] = (tensor if found is None else found).contiguous()

        rewrite_shard(folder, shard_of(folder, name), on)

    return damage


def flip(name: str, index: int, bit: int) -> Damage:
    """Flip a bit of an element."""

    def change(tensor: Tensor) -> None:
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
        mask = 1 << bit
        if width is torch.int16 and bit == 15:
            mask = -(1 << 15)
        tensor.view(-1).view(width)[index] ^= mask

    return edit(name, change)


def edit_index(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the index."""
    return edit_json(INDEX, change)


def edit_config(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change config.json."""
    return edit_json("config.json", change)


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a file's bytes."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return damage


def reindexed(folder: Path) -> None:
    """Make the index anew from the files."""
    weight_map, total = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                weight_map[name] = path.name
                tensor = file.get_tensor(name)
                total += tensor.numel() * tensor.element_size()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def both(*damages: Damage) -> Damage:
    """Several, one after the other."""

    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def change_beside(folder: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of the shard that holds one."""
    rewrite_shard(folder, shard_of(folder, name), change)


def drop(name: str) -> Damage:
    """Take a tensor out of its shard and out of the index."""
    return both(lambda folder: change_beside(folder, name, lambda t: t.pop(name)), reindexed)


def move_zero_point(tensor: Tensor) -> None:
    """Swap two packed 4-bit zero points of one group, which are far apart."""
    flat = tensor.view(-1)
    found = []
    for index, word in enumerate(flat.tolist()):
        nibbles = [(word & 0xFFFFFFFF) >> (4 * i) & 15 for i in range(8)]
        found += [
            (abs(a - b), index, i, j) for i, a in enumerate(nibbles) for j, b in enumerate(nibbles)
        ]
    distance, index, i, j = max(found)
    assert distance >= 3
    nibbles = [(int(flat[index]) & 0xFFFFFFFF) >> (4 * n) & 15 for n in range(8)]
    nibbles[i], nibbles[j] = nibbles[j], nibbles[i]
    word = sum(nibble << (4 * n) for n, nibble in enumerate(nibbles))
    flat[index] = word - (1 << 32) if word >= 1 << 31 else word
