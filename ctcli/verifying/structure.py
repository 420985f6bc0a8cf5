"""Files, index and headers: whatever does not fit together, all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ctcli.checkpoint.value import CONFIG_NAME, INDEX_SUFFIX, RECIPE_NAME
from ctcli.lazy.tensors import Stored, content_of
from ctcli.models.modules import Module, modules_of
from ctcli.storage.destination import DIRECTORY, partial_of
from ctcli.storage.index import NAMES_ALONE, Index
from ctcli.storage.leftover import is_published
from ctcli.storage.local import LocalFile, list_local
from ctcli.storage.problems import Problem
from ctcli.storage.recipe import parse_recipe
from ctcli.storage.strict_json import parse_json
from ctcli.storage.weights import Weights, read_weights, strays_of
from ctcli.verifying.findings import Finding

# What downloads and editors leave behind while they are at work.
_UNFINISHED = re.compile(r".*\.(incomplete|part|tmp|crdownload|aria2)")


@dataclass(frozen=True)
class Snapshot:
    """What of a checkpoint can be read.

    Attributes:
        directory: where it lies.
        files: all files, by path inside it.
        tensors: those of its weights files with a sound header.
        config: config.json; empty if it cannot be read.
        is_complete: whether all weights files are there and have one.
    """

    directory: Path
    files: Mapping[str, LocalFile]
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]
    is_complete: bool

    @cached_property
    def modules(self) -> Mapping[str, Module[Stored]]:
        """The modules by name."""
        return modules_of(self.tensors, self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.spec.nbytes for tensor in self.tensors.values())


def look_at(directory: Path) -> tuple[Snapshot, list[Finding]]:
    """Read headers, index and configs of a checkpoint, and say what is wrong with them.

    Raises:
        CtcliError: it cannot be looked at.
    """
    listing, problems = list_local(directory), list[Problem]()
    files = listing.files
    weights = read_weights(str(directory), files, problems.extend)
    parsed, broken = _parsed(files)
    config = parsed.get(CONFIG_NAME)
    known = config if isinstance(config, dict) else {}
    snapshot = Snapshot(directory, files, _tensors(weights), known, weights.is_complete)
    findings = [
        *_half_written(directory, files),
        *(Finding("file", name, "it is a link that leads out.") for name in listing.leading_out),
        *(Finding(problem.kind, problem.where, problem.message) for problem in problems),
        *_names(weights, files),
        *broken,
        *_strays(files, weights),
    ]
    if CONFIG_NAME not in files:
        findings.append(Finding("config", CONFIG_NAME, "it is not there."))
    elif CONFIG_NAME in parsed and not isinstance(config, dict):
        findings.append(Finding("config", CONFIG_NAME, "it is no JSON object."))
    if weights.index and weights.is_complete:
        findings += _total_size(weights.index, snapshot.nbytes)
    return snapshot, findings


def _half_written(directory: Path, files: Mapping[str, LocalFile]) -> Iterator[Finding]:
    place = directory.resolve()
    if partial_of(place).exists() and not is_published(place, DIRECTORY):
        yield Finding(
            "file", partial_of(place).name, "a run that makes this checkpoint has not finished."
        )
    if any(part.name.endswith(".ctcli-partial") for part in (place, *place.parents)):
        yield Finding("file", directory.name, "it lies in the directory of a run under way.")
    for name, file in files.items():
        # Python packages have empty files.
        if not file.size and not name.endswith((".safetensors", ".py")):
            yield Finding("file", name, "it is empty.")
        if _UNFINISHED.fullmatch(name):
            yield Finding("file", name, "it is named like an unfinished download.")


def _names(weights: Weights, files: Mapping[str, LocalFile]) -> Iterator[Finding]:
    """A weights file that no loader looks for by its name."""
    names = weights.names
    indexes = [name for name in files if name.endswith(INDEX_SUFFIX) and "/" not in name]
    if names and names[0] not in NAMES_ALONE and not indexes:
        yield Finding("index", names[0], "it has no index, and loaders look for its name in one.")


def _tensors(weights: Weights) -> dict[str, Stored]:
    """The tensors, each from the file that the index places it in, else from the first."""
    found: dict[str, Stored] = {}
    placed = weights.index.weight_map if weights.index else {}
    for file in weights.files:
        for name, tensor in file.shard.tensors.items():
            assert isinstance(tensor, Stored)
            if name not in found or placed.get(name) == file.shard.name:
                found[name] = tensor
    return found


def _total_size(index: Index, nbytes: int) -> Iterator[Finding]:
    if index.total_size is not None and index.total_size != nbytes:
        message = f"its total_size is {index.total_size!r}, and the tensors have {nbytes} bytes."
        yield Finding("index", index.name, message)


def _strays(files: Mapping[str, LocalFile], weights: Weights) -> Iterator[Finding]:
    strays, others = strays_of(files, weights.names)
    for name in strays:
        yield Finding("file", name, "a stray: these weights do not belong to the checkpoint.")
    for name in others:
        yield Finding("file", name, "a stray: weights in another format, beside safetensors.")


def _parsed(files: Mapping[str, LocalFile]) -> tuple[dict[str, Any], list[Finding]]:
    """The JSON files of the top folder, and the recipe; but for indexes, which are read apart."""
    parsed, findings = {}, []
    for name, file in files.items():
        is_json = name.endswith(".json") and not name.endswith(".index.json")
        if "/" in name or not file.size or not (is_json or name == RECIPE_NAME):
            continue
        try:
            content = content_of(file)
            parsed[name] = parse_json(content) if is_json else parse_recipe(content)
        except ValueError as error:
            form = "JSON" if is_json else "TOML"
            findings.append(Finding("config", name, f"it is not {form}: {error}."))
    return parsed, findings
