"""Where every output byte goes: fixed from the checkpoint's value before anything is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from ctcli import __version__
from ctcli.checkpoint.value import CONFIG_NAME, RECIPE_NAME, Checkpoint, Origin, Shard
from ctcli.lazy.nodes import Computed, LazyTensor, Node, Stacked, all_nodes
from ctcli.lazy.tensors import Known, SourceFile, Stored
from ctcli.storage.destination import DIRECTORY, Form
from ctcli.storage.index import encode_index
from ctcli.storage.local import mode_of
from ctcli.storage.recipe import encode_recipe
from ctcli.storage.safetensors import encode_header, in_file_order

_CLOSING_FILES = (CONFIG_NAME, "params.json")


@dataclass(frozen=True, slots=True)
class Copy:
    """A run of bytes that an output file takes over from a source file."""

    source: SourceFile
    start: int
    nbytes: int
    offset: int

    def is_followed_by(self, tensor: Stored, offset: int) -> bool:
        """Whether `tensor`, to be written at `offset`, continues this run."""
        ends = (self.start + self.nbytes, self.offset + self.nbytes)
        return self.source == tensor.file and ends == (tensor.start, offset)

    def split(self, nbytes: int) -> Iterator[Copy]:
        """The same run in pieces of at most `nbytes`."""
        for done in range(0, self.nbytes or 1, nbytes):
            piece = min(nbytes, self.nbytes - done)
            yield Copy(self.source, self.start + done, piece, self.offset + done)


class Placed(NamedTuple):
    """A computed tensor of an output file."""

    tensor: Computed
    offset: int


@dataclass(frozen=True, slots=True)
class KnownBytes:
    """Bytes inside an output file that are known beforehand."""

    content: bytes
    offset: int


@dataclass(frozen=True)
class OutputFile:
    """One file of the output: bytes known now, runs copied from source files, computed tensors."""

    name: str
    head: bytes
    copies: tuple[Copy, ...] = ()
    computed: tuple[Placed, ...] = ()
    known: tuple[KnownBytes, ...] = ()
    is_shard: bool = False

    @cached_property
    def size(self) -> int:
        """Length in bytes: where the last part ends."""
        ends = [len(self.head)]
        ends += [copy.offset + copy.nbytes for copy in self.copies[-1:]]
        ends += [part.offset + part.tensor.spec.nbytes for part in self.computed[-1:]]
        ends += [part.offset + len(part.content) for part in self.known[-1:]]
        return max(ends)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """What its computed tensors are outputs of, each once."""
        return tuple(dict.fromkeys(part.tensor.node for part in self.computed))

    @property
    def verbatim(self) -> SourceFile | None:
        """The source file that this shard equals byte for byte, if there is one.

        Other files are never taken for the source's own: they are small, and people edit them.
        """
        if not self.is_shard or self.head or len(self.copies) != 1:
            return None
        (copy,) = self.copies
        return copy.source if copy.nbytes == copy.source.size else None


@dataclass(frozen=True)
class Layout:
    """All output files.

    Attributes:
        files: what is written first.
        closing: what makes the output a checkpoint and is written last.
        form: what DST becomes: a directory of all, or the first of `files`, beside which the
            others go.
        whole: of a share of a layout's files, that layout.
    """

    files: tuple[OutputFile, ...]
    closing: tuple[OutputFile, ...]
    form: Form = DIRECTORY
    whole: Layout | None = None

    def only(self, names: Collection[str]) -> Layout:
        """A share: those of the files that have these names, in a directory."""
        files = tuple(file for file in self.files if file.name in names)
        closing = tuple(file for file in self.closing if file.name in names)
        return Layout(files, closing, DIRECTORY, self)

    @property
    def all_files(self) -> tuple[OutputFile, ...]:
        """The closing files behind the others."""
        return (*self.files, *self.closing)

    @property
    def beside(self) -> dict[str, bytes]:
        """What files that go beside a DST which is a file will hold, by name."""
        return {} if self.form is DIRECTORY else {f.name: f.head for f in self.files[1:]}

    @cached_property
    def sources(self) -> tuple[SourceFile, ...]:
        """The source files that bytes of the files come from, each once."""
        return tuple(sources_of(self.all_files))

    @property
    def mode(self) -> int:
        """Who may read and write what is made anew, such as an index: as with the weights."""
        if self.whole:
            return self.whole.mode
        weights = [source for source in self.sources if source.name.endswith(".safetensors")]
        return mode_of(weights or self.sources) & 0o666

    @cached_property
    def key(self) -> str:
        """A hash that two runs share only if they write the same bytes from the same source."""
        digest = hashlib.sha256(__version__.encode())
        for source in self.sources:
            digest.update(os.fsencode(f"\n{source.name}\0{source.size}\0{source.stamp}"))
        for file in self.all_files:
            digest.update(os.fsencode(f"\n{file.name}\0"))
            for known in (file.head, *(part.content for part in file.known)):
                digest.update(known)
            # Where each tensor lies is in the head.
            places = [f"{copy.source.name}\0{copy.start}\0{copy.nbytes}" for copy in file.copies]
            places += [f"{part.tensor.node.key}\0{part.tensor.output}" for part in file.computed]
            digest.update(os.fsencode("\n".join(places)))
        return digest.hexdigest()


def sources_of(files: Collection[OutputFile]) -> list[SourceFile]:
    """The source files that bytes of `files` come from, each once."""
    every = {id(copy.source): copy.source for file in files for copy in file.copies}
    nodes = all_nodes(node for file in files for node in file.nodes)
    every |= {id(read.file): read.file for node in nodes for read in node.reads}
    return [*dict.fromkeys(every.values())]


class OneFileOutput(Protocol):
    """What a rewrite returns that is no checkpoint; it lays itself out."""

    @property
    def origin(self) -> Origin:
        """The source."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know."""

    def lay_out(self, name: str) -> Layout:
        """Fix name, offset and origin of every output byte; DST is called `name`."""


def lay_out(made: Checkpoint | OneFileOutput, name: str = "") -> Layout:
    """Fix name, offset and origin of every output byte; DST is called `name`."""
    return _lay_out(made) if isinstance(made, Checkpoint) else made.lay_out(name)


def _lay_out(checkpoint: Checkpoint) -> Layout:
    shards = [_weights_file(shard, checkpoint.source_of(shard)) for shard in checkpoint.shards]
    shards += [_weights_file(shard, None) for shard in checkpoint.beside]
    carried = [
        OutputFile(name, file) if isinstance(file, bytes) else _whole(name, file)
        for name, file in checkpoint.files.items()
    ]
    generated = encode_index(checkpoint) | {RECIPE_NAME: encode_recipe(checkpoint)}
    return Layout(
        (*shards, *(file for file in carried if file.name not in _CLOSING_FILES)),
        (
            *(file for file in carried if file.name in _CLOSING_FILES),
            *(OutputFile(name, content) for name, content in generated.items()),
        ),
    )


def _weights_file(shard: Shard, source: SourceFile | None) -> OutputFile:
    """The source file that the shard equals, else a new header and runs of bytes."""
    if source:
        return replace(_whole(shard.name, source), is_shard=True)
    tensors = in_file_order(shard.tensors)
    # Readers of safetensors in the wild insist on a format wherever there is metadata.
    metadata = {"format": "pt", **shard.metadata}
    head = encode_header({name: tensor.spec for name, tensor in tensors.items()}, metadata)
    return replace(output_file(shard.name, head, tensors.values()), is_shard=True)


def _whole(name: str, file: SourceFile) -> OutputFile:
    return OutputFile(name, b"", (Copy(file, 0, file.size, 0),))


def output_file(name: str, head: bytes, tensors: Iterable[LazyTensor]) -> OutputFile:
    """A file of `head` and then the tensors, without gaps.

    There is one copy for each run of tensors that are neighbours in the source as in the output.
    """
    copies: list[Copy] = []
    computed: list[Placed] = []
    known: list[KnownBytes] = []
    offset = len(head)
    for tensor in tensors:
        nbytes = tensor.spec.nbytes
        if isinstance(tensor, Computed):
            computed.append(Placed(tensor, offset))
        elif isinstance(tensor, Stacked):
            each = tensor.parts[0].spec.nbytes
            computed += (Placed(part, offset + i * each) for i, part in enumerate(tensor.parts))
            nbytes = each * len(tensor.parts)
        elif isinstance(tensor, Known):
            known.append(KnownBytes(tensor.content, offset))
        elif copies and copies[-1].is_followed_by(tensor, offset):
            copies[-1] = replace(copies[-1], nbytes=copies[-1].nbytes + nbytes)
        else:
            copies.append(Copy(tensor.file, tensor.start, nbytes, offset))
        offset += nbytes
    return OutputFile(name, head, tuple(copies), tuple(computed), tuple(known))
