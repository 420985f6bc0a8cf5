"""The index file of a sharded checkpoint: which weights file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ctcli.checkpoint.sharding import natural_key
from ctcli.checkpoint.value import INDEX_SUFFIX, Checkpoint, Shard
from ctcli.errors import CtcliError
from ctcli.storage.problems import Problem
from ctcli.storage.strict_json import parse_json

DEFAULT_INDEX = f"model{INDEX_SUFFIX}"
# Names under which loaders of transformers, diffusers and Mistral look for a file that is alone.
NAMES_ALONE = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "consolidated.safetensors",
)
_HINT = "Repair the index, or delete it: without one it is made anew from the files' headers."


@dataclass(frozen=True)
class Index:
    """A parsed index: tensor name to file name, `total_size` as it stands, other metadata."""

    name: str
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]
    total_size: Any = None

    @property
    def files(self) -> list[str]:
        """The weights files it names, each once, in order."""
        return sorted(set(self.weight_map.values()), key=natural_key)


def find_index(names: Iterable[str]) -> str | None:
    """The checkpoint's index among the file names of its top folder, if it has one."""
    indexes = sorted(name for name in names if name.endswith(INDEX_SUFFIX) and "/" not in name)
    if DEFAULT_INDEX in indexes:
        return DEFAULT_INDEX
    if len(indexes) < 2:
        return indexes[0] if indexes else None
    raise CtcliError(
        f"several index files and none of them {DEFAULT_INDEX}: {', '.join(indexes)}.",
        "Keep the index of the variant you want in a directory of its own, with its shards.",
    )


def parse_index(name: str, content: bytes) -> Index:
    """Parse an index file.

    Raises:
        CtcliError: no JSON, no `weight_map`, or entries that leave the directory; lists them all.
    """
    try:
        index = parse_json(content)
    except ValueError as error:
        raise CtcliError(f"{name}: no index: {error}.", _HINT) from error
    try:
        weight_map = index["weight_map"]
        metadata = dict(index.get("metadata") or {})
        entries = list(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CtcliError(f"{name}: no index with a weight_map.", _HINT) from error
    inside = {file for file in {f for _, f in entries if isinstance(f, str)} if _is_inside(file)}
    problems = [
        f"{name}: {tensor!r} is put into {file!r}, which is no file name inside the checkpoint."
        for tensor, file in entries
        if not isinstance(file, str) or file not in inside
    ]
    if problems:
        raise CtcliError(problems, _HINT)
    total_size = metadata.pop("total_size", None)
    return Index(name, weight_map, metadata, total_size)


def missing_files(index: Index, names: Iterable[str]) -> list[Problem]:
    """The weights files that an index names, and that are not there."""
    return [
        Problem(
            "index",
            file,
            "the index names it, and it is not there.",
            f"{index.name} names {file}, which is not there.",
            "Fetch the missing files, or correct the index.",
        )
        for file in sorted(set(index.files).difference(names))
    ]


def apply_index(
    index: Index, shards: Iterable[Shard]
) -> tuple[tuple[Shard, ...], list[Problem], list[Problem]]:
    """Keep of each shard what the index says it holds.

    Returns:
        The shards; tensors that the index places in files that do not hold them; and, as warnings,
        those that it does not place where they lie.
    """
    by_name = {shard.name: shard for shard in shards}
    misplaced = [
        Problem(
            "index",
            tensor,
            f"{index.name} puts it into {file}, which does not hold it.",
            f"{index.name} puts tensor {tensor!r} into {file}, which does not hold it.",
            _HINT,
        )
        for tensor, file in index.weight_map.items()
        if tensor not in by_name[file].tensors
    ]
    kept, stale = [], []
    for name, shard in by_name.items():
        placed = {t: s for t, s in shard.tensors.items() if index.weight_map.get(t) == name}
        if len(placed) == len(shard.tensors):
            kept.append(shard)
            continue
        kept.append(replace(shard, tensors=placed))
        stale += [
            Problem(
                "index",
                tensor,
                f"{name} holds it, and {index.name} does not say so.",
                f"{name}: tensor {tensor!r} is left out: {index.name} does not place it there.",
                is_warning=True,
            )
            for tensor in sorted(shard.tensors.keys() - placed.keys())
        ]
    return tuple(kept), misplaced, stale


def encode_index(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The index file that belongs to the checkpoint's shards; none for one that is found alone."""
    if [shard.name for shard in checkpoint.shards] in [[name] for name in NAMES_ALONE]:
        return {}
    metadata = {**checkpoint.index_metadata, "total_size": checkpoint.nbytes}
    # json's own indenting takes most of a second for a hundred thousand names.
    *head, end = json.dumps({"metadata": metadata, "weight_map": {}}, indent=2).splitlines()
    quote = json.encoder.encode_basestring_ascii
    quoted = {shard.name: quote(shard.name) for shard in checkpoint.shards}
    places = [(name, quoted[shard.name]) for shard in checkpoint.shards for name in shard.tensors]
    lines = (f"    {quote(name)}: {place}" for name, place in sorted(places))
    head[-1] = head[-1].removesuffix("}")
    text = "\n".join([*head, ",\n".join(lines), "  }", end, ""])
    return {checkpoint.index_name: text.encode()}


def _is_inside(file: str) -> bool:
    if not file or "\\" in file or "\0" in file:
        return False
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and str(path) == file
