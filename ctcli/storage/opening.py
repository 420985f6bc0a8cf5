"""From a directory or a hub id to a `Checkpoint`, by reading headers only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctcli.checkpoint.value import CONFIG_NAME, RECIPE_NAME, Checkpoint, Origin
from ctcli.errors import CtcliError
from ctcli.lazy.tensors import SourceFile, content_of
from ctcli.storage.index import DEFAULT_INDEX, Index
from ctcli.storage.local import list_local
from ctcli.storage.naming import near_paths, parse_source
from ctcli.storage.problems import Refusing
from ctcli.storage.recipe import read_history
from ctcli.storage.safetensors import WeightsFile
from ctcli.storage.strict_json import parse_json
from ctcli.storage.weights import DEFAULT_WEIGHTS, OTHER_WEIGHTS, read_weights, some_of, strays_of

_ADAPTER = "adapter_config.json"


def open_checkpoint(
    source: str,
    revision: str | None = None,
    stream_to: Path | None = None,
    subfolder: str | None = None,
) -> Checkpoint:
    """Open the checkpoint that `source` names, as `storage.naming` reads it.

    Args:
        source: a directory, a weights file, or a model on a hub.
        revision: branch, tag or commit on the hub.
        stream_to: folder that weights files of a hub pass through, instead of the hub cache.
        subfolder: folder inside it.

    Raises:
        CtcliError: nothing there, or index, headers and files that do not fit together.
    """
    place = parse_source(source, revision, subfolder)
    if place.path:
        listing = list_local(place.path)
        _check_kind(source, listing.files)
        with _also_saying(listing.warnings):
            name = place.path.resolve().name
            checkpoint = _assemble(source, listing.files, name, None)
        return replace(checkpoint, warnings=(*checkpoint.warnings, *listing.warnings))
    from ctcli.storage.hub.files import list_hub  # the hub client takes 0.3 s to import
    from ctcli.storage.hub.streamed import stream_files

    with _naming_near_paths(source):
        files, commit = list_hub(place.repo, place.revision, place.folder)
    _check_kind(source, files)
    if stream_to:
        files = stream_files(files.values(), stream_to)
    return _assemble(place.repo, files, place.repo, commit)


@contextmanager
def _naming_near_paths(source: str) -> Iterator[None]:
    """Where a hub does not have it, the directories here that may have been meant."""
    try:
        yield
    except CtcliError as error:
        if near := near_paths(source):
            raise CtcliError(
                error.problems, f"Near names here: {', '.join(near)}. {error.hint}"
            ) from error
        raise


def _check_kind(source: str, files: Mapping[str, SourceFile]) -> None:
    """Refuse what has safetensors files and is no model.

    Raises:
        CtcliError: says what it is.
    """
    if _ADAPTER in files and DEFAULT_INDEX not in files and DEFAULT_WEIGHTS not in files:
        raise CtcliError(
            f"{source}: a LoRA adapter, which changes a model and is none.",
            "Merge it into its base model first (PEFT's merge_and_unload), then name the result.",
        )


@contextmanager
def _also_saying(warnings: Sequence[str]) -> Iterator[None]:
    """Add warnings to the problems of an error: what was left out may be what is missing."""
    try:
        yield
    except CtcliError as error:
        raise CtcliError([*error.problems, *warnings], error.hint) from error


def _assemble(
    source: str, files: Mapping[str, SourceFile], name: str, commit: str | None
) -> Checkpoint:
    refusing = Refusing()
    weights = read_weights(source, files, refusing)
    if not any(shard.tensors for shard in weights.shards):
        raise CtcliError(f"{source}: its weights files hold no tensors.", "Check the download.")
    index = weights.index or Index(DEFAULT_INDEX, {}, {})
    carried, left_out = _carried_along(files, weights.names)
    history, unreadable = read_history(files.get(RECIPE_NAME))
    config, no_config = _read_config(files.get(CONFIG_NAME))
    return Checkpoint(
        weights.shards,
        {file.file.name: file.shard for file in weights.files},
        carried,
        config,
        Origin(name, commit, _digest(weights.files)),
        index.name,
        index.metadata,
        index.total_size,
        history,
        warnings=(*refusing.warnings, *left_out, *unreadable, *no_config),
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
    files: Mapping[str, SourceFile], used: Collection[str]
) -> tuple[dict[str, SourceFile], list[str]]:
    """The files that come along, and warnings about those that are left out."""
    strays, others = strays_of(files, used)
    warnings = []
    if strays:
        warnings.append(f"left out, since the checkpoint does not name them: {some_of(strays)}.")
    if others:
        warnings.append(f"left out, since they are weights of other formats: {some_of(others)}.")
    kept = {
        name: file
        for name, file in files.items()
        if not name.removesuffix(".index.json").endswith((".safetensors", *OTHER_WEIGHTS))
        and name not in used
        and name != RECIPE_NAME
    }
    return kept, warnings


def _digest(weights: Iterable[WeightsFile]) -> str:
    digest = hashlib.sha256()
    for file in weights:
        digest.update(os.fsencode(f"{file.file.name}\0{len(file.header)}\0"))
        digest.update(file.header)
    return digest.hexdigest()
