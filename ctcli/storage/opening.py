"""From a directory or a hub id to a `Checkpoint`, by reading headers only."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ctcli.checkpoint.sharding import natural_key
from ctcli.checkpoint.value import CONFIG_NAME, RECIPE_NAME, Checkpoint, Origin, Shard
from ctcli.errors import CtcliError
from ctcli.lazy.tensors import SourceFile, content_of
from ctcli.storage.index import (
    DEFAULT_INDEX,
    Index,
    apply_index,
    check_files_exist,
    find_index,
    parse_index,
)
from ctcli.storage.local import list_local
from ctcli.storage.recipe import read_history
from ctcli.storage.safetensors import WeightsFile, read_weights_file
from ctcli.storage.strict_json import parse_json

DEFAULT_WEIGHTS = "model.safetensors"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_HEADER_READERS = 8  # on a hub each header is a round trip


def local_directory(source: str) -> Path | None:
    """The directory that `source` names, or None where it is a hub id.

    Raises:
        CtcliError: it is neither.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    if exists:
        raise CtcliError(f"{source}: not a directory.", "Name the directory that holds it.")
    if not HUB_ID.fullmatch(source):
        raise CtcliError(
            f"{source}: no such directory.", "Name a directory, or a hub id such as org/name."
        )
    return None


def open_checkpoint(
    source: str, revision: str | None = None, stream_to: Path | None = None
) -> Checkpoint:
    """Open the checkpoint at `source`, a local directory or a hub id.

    Args:
        source: the directory or id.
        revision: branch, tag or commit on the hub.
        stream_to: folder that weights files of a hub pass through, instead of the hub cache.

    Raises:
        CtcliError: nothing there, or index, headers and files that do not fit together.
    """
    directory = local_directory(source)
    files: Mapping[str, SourceFile]
    if directory:
        name, commit, files = directory.resolve().name, None, list_local(directory)
    else:
        from ctcli.storage.hub.files import list_hub  # the hub client takes 0.3 s to import
        from ctcli.storage.hub.streamed import stream_files

        name, (files, commit) = source, list_hub(source, revision)
        if stream_to:
            files = stream_files(files.values(), stream_to)
    return _assemble(source, files, name, commit)


def _assemble(
    source: str, files: Mapping[str, SourceFile], name: str, commit: str | None
) -> Checkpoint:
    if index_name := find_index(files):
        index = parse_index(index_name, content_of(files[index_name]))
        check_files_exist(index, files)
        weights = _read_headers(files[name] for name in index.files)
        shards, stale = apply_index(index, (file.shard for file in weights))
    else:
        weights = _read_headers(_unindexed(source, files))
        index, stale = Index(DEFAULT_INDEX, {}, {}), []
        shards = tuple(file.shard for file in weights)
        _check_no_tensor_twice(shards)
    if not any(shard.tensors for shard in shards):
        raise CtcliError(f"{source}: its weights files hold no tensors.", "Check the download.")
    carried, left_out = _carried_along(files, {shard.name for shard in shards})
    history, unreadable = read_history(files.get(RECIPE_NAME))
    config, no_config = _read_config(files.get(CONFIG_NAME))
    return Checkpoint(
        shards,
        {file.file.name: file.shard for file in weights},
        carried,
        config,
        Origin(name, commit, _digest(weights)),
        index.name,
        index.metadata,
        index.total_size,
        history,
        warnings=(*stale, *left_out, *unreadable, *no_config),
    )


def _unindexed(source: str, files: Mapping[str, SourceFile]) -> list[SourceFile]:
    """The weights files of a checkpoint without an index."""
    names = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if DEFAULT_WEIGHTS in names:
        return [files[DEFAULT_WEIGHTS]]
    if names:
        return [files[name] for name in sorted(names, key=natural_key)]
    if others := [name for name in files if name.endswith(_OTHER_WEIGHTS)]:
        raise CtcliError(
            f"{source}: its weights are not safetensors: {_some(others)}.",
            "Convert them first: load the model in transformers and save_pretrained it.",
        )
    raise CtcliError(f"{source}: no safetensors files in it.", "Check the path.")


def _read_headers(files: Iterable[SourceFile]) -> list[WeightsFile]:
    def attempt(file: SourceFile) -> WeightsFile | CtcliError:
        try:
            return read_weights_file(file)
        except CtcliError as error:
            return error

    pool = ThreadPoolExecutor(_HEADER_READERS)
    try:
        results = list(pool.map(attempt, files))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a hub may take its time to answer
    errors = [result for result in results if isinstance(result, CtcliError)]
    if errors:
        raise CtcliError([line for e in errors for line in e.problems], errors[0].hint)
    return [result for result in results if isinstance(result, WeightsFile)]


def _check_no_tensor_twice(shards: Iterable[Shard]) -> None:
    home: dict[str, str] = {}
    problems = []
    for shard in shards:
        for tensor in shard.tensors:
            if tensor in home:
                problems.append(f"tensor {tensor!r} is both in {home[tensor]} and in {shard.name}.")
            home[tensor] = shard.name
    if problems:
        raise CtcliError(
            problems, "There is no index to decide: add the index, or move the stray file away."
        )


def _read_config(file: SourceFile | None) -> tuple[dict[str, Any], list[str]]:
    """The parsed config.json, and a warning if it cannot be parsed: not every command needs it."""
    if file is None:
        return {}, []
    try:
        config = parse_json(content_of(file))
        return (config, []) if isinstance(config, dict) else ({}, [f"{file.name}: no JSON object."])
    except ValueError as error:
        return {}, [f"{file.name}: not JSON: {error}."]


def _carried_along(
    files: Mapping[str, SourceFile], used: set[str]
) -> tuple[dict[str, SourceFile], list[str]]:
    """The files that come along, and warnings about those that are left out."""
    strays = [n for n in files if n.endswith(".safetensors") and n not in used]
    others = [n for n in files if n.endswith(_OTHER_WEIGHTS)]
    warnings = []
    if strays:
        warnings.append(f"left out, since the checkpoint does not name them: {_some(strays)}.")
    if others:
        warnings.append(f"left out, since they are weights of other formats: {_some(others)}.")
    kept = {
        name: file
        for name, file in files.items()
        if not name.removesuffix(".index.json").endswith((".safetensors", *_OTHER_WEIGHTS))
        and name not in used
        and name != RECIPE_NAME
    }
    return kept, warnings


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _digest(weights: Iterable[WeightsFile]) -> str:
    digest = hashlib.sha256()
    for file in weights:
        digest.update(os.fsencode(f"{file.file.name}\0{len(file.header)}\0"))
        digest.update(file.header)
    return digest.hexdigest()
