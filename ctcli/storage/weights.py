"""The weights files of a checkpoint: which they are, their headers, and their index."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from ctcli.checkpoint.sharding import is_numbered, natural_key
from ctcli.checkpoint.value import ROTATIONS_NAME, Shard
from ctcli.errors import CtcliError
from ctcli.lazy.tensors import SourceFile, content_of
from ctcli.storage.index import Index, apply_index, find_index, missing_files, parse_index
from ctcli.storage.problems import Problem, Sink, problems_of
from ctcli.storage.safetensors import WeightsFile, read_weights_file

DEFAULT_WEIGHTS = "model.safetensors"
_TOTAL = re.compile(r".*-of-([0-9]+)\.safetensors")
OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_HEADER_READERS = 8  # on a hub each header is a round trip


@dataclass(frozen=True)
class Weights:
    """The weights files of a checkpoint, as far as they can be read.

    Attributes:
        index: its index; None: it has none, or it cannot be read.
        names: of all files that make up the checkpoint, there or not.
        files: those of them with a sound header, in order.
        shards: the same, with what the index says they hold.
    """

    index: Index | None
    names: Sequence[str]
    files: Sequence[WeightsFile]
    shards: tuple[Shard, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all files are there and have a sound header."""
        return len(self.files) == len(self.names)


def read_weights(source: str, files: Mapping[str, SourceFile], sink: Sink) -> Weights:
    """Read index and headers.

    Args:
        source: the checkpoint's name, for messages.
        files: all its files, by path inside it.
        sink: is told of what does not fit together.
    """
    index = _index(files, sink)
    names = index.files if index else _unindexed(files)
    sink(missing_files(index, files) if index else [])
    sink([*_wrong_totals(names, is_indexed=index is not None)])
    if not names:
        sink([_no_weights(source, files, is_indexed=index is not None)])
    weights = _read_headers([files[name] for name in names if name in files], sink)
    shards = tuple(file.shard for file in weights)
    sink(_tensors_twice(shards, is_indexed=index is not None))
    if index and len(weights) == len(names):
        shards, misplaced, stale = apply_index(index, shards)
        sink(misplaced)
        sink(stale)
    return Weights(index, names, weights, shards)


def _index(files: Mapping[str, SourceFile], sink: Sink) -> Index | None:
    name = "index"
    try:
        found = find_index(files)
        if found is None:
            return None
        name = found
        return parse_index(name, content_of(files[name]))
    except CtcliError as error:
        sink(problems_of(error, "index", name))
        return None


def _unindexed(files: Iterable[str]) -> list[str]:
    """The weights files of a checkpoint without an index."""
    names = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    return [DEFAULT_WEIGHTS] if DEFAULT_WEIGHTS in names else sorted(names, key=natural_key)


def _wrong_totals(names: Sequence[str], *, is_indexed: bool) -> Iterator[Problem]:
    """Names that tell of more files, or fewer, than there are: an index knows better."""
    numbered = [name for name in names if is_numbered(name)]
    totals = {int(match[1]) for name in numbered if (match := _TOTAL.fullmatch(name))}
    for total in sorted(totals - {len(numbered)}):
        message = f"the name says that there are {total} such files, and there are {len(numbered)}."
        line = "" if is_indexed else f"{numbered[0]}: {message}"
        yield Problem("file", numbered[0], message, line, is_warning=True)


def _no_weights(source: str, files: Iterable[str], *, is_indexed: bool) -> Problem:
    line, hint = f"{source}: no safetensors files in it.", "Check the path."
    if others := [name for name in files if name.endswith(OTHER_WEIGHTS)]:
        line = f"{source}: its weights are not safetensors: {some_of(others)}."
        hint = "Convert them first: load the model in transformers and save_pretrained it."
        if all(name.endswith(".gguf") for name in others):
            line = f"{source}: GGUF files, which llama.cpp reads: {some_of(others)}."
            hint = "Give the safetensors checkpoint that they were made from."
    message = "there are no weights files."
    return Problem("file", "*.safetensors", message, "" if is_indexed else line, hint)


def _read_headers(files: Sequence[SourceFile], sink: Sink) -> list[WeightsFile]:
    def attempt(file: SourceFile) -> WeightsFile | list[Problem]:
        try:
            return read_weights_file(file)
        except CtcliError as error:
            return problems_of(error, "file", file.name)

    if not any(file.fetch_bytes for file in files):
        results = [attempt(file) for file in files]
    else:
        pool = ThreadPoolExecutor(_HEADER_READERS)
        try:
            results = list(pool.map(attempt, files))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a hub may take its time to answer
    sink([problem for found in results if isinstance(found, list) for problem in found])
    return [found for found in results if isinstance(found, WeightsFile)]


def _tensors_twice(shards: Iterable[Shard], *, is_indexed: bool) -> list[Problem]:
    """Tensors that lie in several files: without an index, nothing says which counts."""
    shards = [*shards]
    if len({*chain(*(s.tensors for s in shards))}) == sum(len(s.tensors) for s in shards):
        return []
    homes: dict[str, list[str]] = {}
    for shard in shards:
        for tensor in shard.tensors:
            homes.setdefault(tensor, []).append(shard.name)
    return [
        Problem(
            "file",
            tensor,
            f"it lies both in {' and in '.join(names)}.",
            "" if is_indexed else f"tensor {tensor!r} is both in {' and in '.join(names)}.",
            "There is no index to decide: add the index, or move the stray file away.",
        )
        for tensor, names in homes.items()
        if len(names) > 1
    ]


def strays_of(files: Iterable[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Weights files beside a checkpoint's own: safetensors, and those of other formats."""
    known = {*own}
    names = [name for name in files if name not in known and name != ROTATIONS_NAME]
    strays = [name for name in names if name.endswith(".safetensors")]
    return strays, [name for name in names if name.endswith(OTHER_WEIGHTS)]


def some_of(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
