"""Files, index and headers: whatever does not fit together, all of it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ctcli.checkpoint.sharding import is_numbered, natural_key
from ctcli.checkpoint.value import CONFIG_NAME, RECIPE_NAME, Shard
from ctcli.errors import CtcliError
from ctcli.lazy.tensors import StoredTensor, content_of
from ctcli.models.modules import Module, modules_of
from ctcli.storage.destination import partial_of
from ctcli.storage.index import Index, find_index, parse_index
from ctcli.storage.local import LocalFile, list_local
from ctcli.storage.opening import DEFAULT_WEIGHTS
from ctcli.storage.safetensors import read_weights_file
from ctcli.storage.strict_json import parse_json
from ctcli.verifying.findings import Finding, findings_of

_OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
# What downloads and editors leave behind while they are at work.
_UNFINISHED = re.compile(r".*\.(incomplete|part|tmp|crdownload|aria2)")
_TOTAL = re.compile(r".*-of-([0-9]+)\.safetensors")


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
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any]
    is_complete: bool

    @cached_property
    def modules(self) -> Mapping[str, Module[StoredTensor]]:
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
    files = list_local(directory)
    findings = [*_half_written(directory, files)]
    index, found = _index(files)
    shards, unreadable = _shards(index, files)
    tensors, twice = _tensors(index, shards)
    parsed, broken = _parsed(files)
    findings += [*found, *unreadable, *twice, *broken, *_strays(files, index)]
    config = parsed.get(CONFIG_NAME)
    if CONFIG_NAME not in files:
        findings.append(Finding("config", CONFIG_NAME, "it is not there."))
    elif CONFIG_NAME in parsed and not isinstance(config, dict):
        findings.append(Finding("config", CONFIG_NAME, "it is no JSON object."))
    known = config if isinstance(config, dict) else {}
    is_complete = shards.keys() == {*_own_files(index, files)}
    snapshot = Snapshot(directory, files, tensors, known, is_complete)
    if index and is_complete:
        findings += _index_against_shards(index, shards, snapshot.nbytes)
    return snapshot, findings


def _half_written(directory: Path, files: Mapping[str, LocalFile]) -> Iterator[Finding]:
    place = directory.resolve()
    if partial_of(place).exists():
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


def _index(files: Mapping[str, LocalFile]) -> tuple[Index | None, list[Finding]]:
    try:
        name = find_index(files)
        if name is None:
            return None, [*_without_index(files)]
    except CtcliError as error:
        return None, findings_of(error, "index", "index")
    try:
        return parse_index(name, content_of(files[name])), []
    except CtcliError as error:
        return None, findings_of(error, "index", name)


def _without_index(files: Mapping[str, LocalFile]) -> Iterator[Finding]:
    names = [name for name in _weights_files(files) if name != DEFAULT_WEIGHTS]
    if DEFAULT_WEIGHTS not in files and names:
        yield Finding("index", names[0], "it has no index, and loaders look for its name in one.")


def _weights_files(names: Iterable[str]) -> list[str]:
    """The safetensors files in the top folder, in order."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    return sorted(found, key=natural_key)


def _own_files(index: Index | None, files: Mapping[str, LocalFile]) -> list[str]:
    """The weights files that make up the checkpoint, there or not."""
    if index:
        return index.files
    return [DEFAULT_WEIGHTS] if DEFAULT_WEIGHTS in files else _weights_files(files)


def _shards(
    index: Index | None, files: Mapping[str, LocalFile]
) -> tuple[dict[str, Shard], list[Finding]]:
    shards, findings = {}, []
    names = _own_files(index, files)
    for name in names:
        if name not in files:
            findings.append(Finding("index", name, "the index names it, and it is not there."))
            continue
        try:
            shards[name] = read_weights_file(files[name]).shard
        except CtcliError as error:
            findings += findings_of(error, "file", name)
    if not names:
        findings.append(Finding("file", "*.safetensors", "there are no weights files."))
    totals = {int(match[1]) for name in names if (match := _TOTAL.fullmatch(name))}
    numbered = [name for name in names if is_numbered(name)]
    for total in sorted(totals - {len(numbered)}):
        message = f"the name says that there are {total} such files, and there are {len(numbered)}."
        findings.append(Finding("file", numbered[0], message))
    return shards, findings


def _tensors(
    index: Index | None, shards: Mapping[str, Shard]
) -> tuple[dict[str, StoredTensor], list[Finding]]:
    """The tensors, each from the file that the index places it in; and those that lie in two."""
    homes: dict[str, list[str]] = {}
    for shard in shards.values():
        for tensor in shard.tensors:
            homes.setdefault(tensor, []).append(shard.name)
    found = {}
    for tensor, places in homes.items():
        placed = index.weight_map.get(tensor) if index else None
        stored = shards[placed if placed in places else places[0]].tensors[tensor]
        assert isinstance(stored, StoredTensor)
        found[tensor] = stored
    return found, [
        Finding("file", tensor, f"it lies both in {' and in '.join(places)}.")
        for tensor, places in homes.items()
        if len(places) > 1
    ]


def _index_against_shards(
    index: Index, shards: Mapping[str, Shard], nbytes: int
) -> Iterator[Finding]:
    held = {(tensor, name) for name, shard in shards.items() for tensor in shard.tensors}
    for tensor, name in sorted({*index.weight_map.items()} - held):
        yield Finding("index", tensor, f"{index.name} puts it into {name}, which does not hold it.")
    for tensor, name in sorted(held - {*index.weight_map.items()}):
        message = f"{name} holds it, and {index.name} does not say so."
        yield Finding("index", tensor, message)
    if index.total_size is not None and index.total_size != nbytes:
        message = f"its total_size is {index.total_size!r}, and the tensors have {nbytes} bytes."
        yield Finding("index", index.name, message)


def _strays(files: Mapping[str, LocalFile], index: Index | None) -> Iterator[Finding]:
    own = _own_files(index, files)
    for name in files:
        if name.endswith(".safetensors") and name not in own:
            yield Finding("file", name, "a stray: these weights do not belong to the checkpoint.")
        elif name.endswith(_OTHER_WEIGHTS):
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
            parsed[name] = parse_json(content) if is_json else tomllib.loads(content.decode())
        except ValueError as error:
            form = "JSON" if is_json else "TOML"
            findings.append(Finding("config", name, f"it is not {form}: {error}."))
    return parsed, findings
