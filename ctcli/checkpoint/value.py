"""The checkpoint as a value: shards of lazy tensors, the files beside them, where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import SourceFile, Stored, TensorSpec
from ctcli.models.modules import Module, modules_of
from ctcli.units import Advance

INDEX_SUFFIX = ".safetensors.index.json"
CONFIG_NAME = "config.json"
RECIPE_NAME = "ctcli_recipe.toml"
# Not beside the weights: loaders take every safetensors file there for some.
ROTATIONS_NAME = "ctcli_rotations/R.safetensors"

# One step of a recipe: `use` names the command, the other keys are its options.
StepTable = Mapping[str, Any]
Modules = Mapping[str, Module[LazyTensor]]


@dataclass(frozen=True)
class Shard:
    """One weights file: its name, its tensors, and the strings of its `__metadata__`."""

    name: str
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of tensor data, without the header."""
        return sum(tensor.spec.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from, as its recipe states it.

    Attributes:
        name: hub id, or the directory's own name.
        commit: hub commit; None for a local directory.
        headers_sha256: hash over the names and headers of the weights files.
    """

    name: str
    commit: str | None
    headers_sha256: str


class Preparation(Protocol):
    """What is computed before a run's first byte is written, and takes its time."""

    @property
    def title(self) -> str:
        """What is done, for people."""

    @property
    def nbytes(self) -> int:
        """Bytes that go through it."""

    @property
    def memory(self) -> int:
        """Bytes that it holds, at most."""

    def run(self, advance: Advance) -> None:
        """Do it, unless it was done; a run that has not done it does so where it is needed.

        Raises:
            CtcliError: what it reads cannot be read.
        """


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, known from its headers alone.

    Attributes:
        shards: the weights files, in order.
        source_shards: the source's weights files as they are, by name.
        files: everything carried along, by path inside the checkpoint; bytes where it is new.
        config: config.json, parsed; empty where there is none.
        origin: the source.
        index_name: name of the index file, written where there is more than one shard.
        index_metadata: what the source's index says of itself, except `total_size`.
        index_total_size: what it says of that; None if nothing.
        history: steps of the recipes that made the source, oldest first.
        steps: the rewrites applied since, with all their options: the recipe of this run.
        warnings: what a user should know about the source.
        beside: files of tensors that are none of the model's.
        preparations: what to do before the run.
    """

    shards: tuple[Shard, ...]
    source_shards: Mapping[str, Shard]
    files: Mapping[str, SourceFile | bytes]
    config: Mapping[str, Any]
    origin: Origin
    index_name: str
    index_metadata: Mapping[str, Any]
    index_total_size: Any = None
    history: tuple[StepTable, ...] = ()
    steps: tuple[StepTable, ...] = ()
    warnings: tuple[str, ...] = ()
    beside: tuple[Shard, ...] = ()
    preparations: tuple[Preparation, ...] = ()

    def tensors(self) -> Iterator[tuple[str, LazyTensor]]:
        """Every tensor with its name, shard by shard."""
        for shard in self.shards:
            yield from shard.tensors.items()

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What every tensor looks like, by name."""
        return {name: tensor.spec for name, tensor in self.tensors()}

    @cached_property
    def modules(self) -> Modules:
        """Its modules by name."""
        return modules_of(dict(self.tensors()), self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data in all shards."""
        return sum(shard.nbytes for shard in self.shards)

    def with_config(self, config: Mapping[str, Any]) -> Checkpoint:
        """The same with another config.json; the order of its keys is kept."""
        try:
            content = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # half a character, by JSON's escapes: so it goes out again
            content = (json.dumps(config, indent=2) + "\n").encode()
        return replace(self, config=config, files={**self.files, CONFIG_NAME: content})

    def home(self) -> dict[str, str]:
        """The name of the shard that holds each tensor."""
        return {name: shard.name for shard in self.shards for name in shard.tensors}

    def source_of(self, shard: Shard) -> SourceFile | None:
        """The source file that holds exactly `shard`, if one does: its bytes can be taken over."""
        stored = [t for t in shard.tensors.values() if isinstance(t, Stored)]
        for file in {tensor.file.name: tensor.file for tensor in stored}.values():
            source = self.source_shards.get(file.name)
            if source is None:
                continue
            if source.tensors == shard.tensors and source.metadata == shard.metadata:
                return file
        return None
