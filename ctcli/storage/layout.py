"""Where every output byte goes: fixed from the checkpoint's value before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ctcli import __version__
from ctcli.checkpoint import RECIPE_NAME, Checkpoint, Shard
from ctcli.storage.index import encode_index
from ctcli.storage.recipe import encode_recipe
from ctcli.storage.safetensors import encode_header, file_order
from ctcli.tensors import SourceFile, StoredTensor

_CLOSING_FILES = ("config.json", "params.json")


@dataclass(frozen=True, slots=True)
class Copy:
    """A run of bytes that an output file takes over from a source file."""

    source: SourceFile
    start: int
    nbytes: int
    offset: int

    def split(self, nbytes: int) -> Iterator[Copy]:
        """The same run in pieces of at most `nbytes`."""
        for done in range(0, self.nbytes or 1, nbytes):
            piece = min(nbytes, self.nbytes - done)
            yield Copy(self.source, self.start + done, piece, self.offset + done)


@dataclass(frozen=True)
class OutputFile:
    """One file of the output: bytes known now, then runs copied from source files."""

    name: str
    head: bytes
    copies: tuple[Copy, ...]

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.head) + sum(copy.nbytes for copy in self.copies)

    @property
    def verbatim(self) -> SourceFile | None:
        """The source file that this one equals byte for byte, if there is one."""
        if self.head or len(self.copies) != 1:
            return None
        (copy,) = self.copies
        return copy.source if copy.nbytes == copy.source.size else None


@dataclass(frozen=True)
class Layout:
    """All output files. `closing` ones make the output a checkpoint and are written last."""

    files: tuple[OutputFile, ...]
    closing: tuple[OutputFile, ...]

    @property
    def all_files(self) -> tuple[OutputFile, ...]:
        """The closing files behind the others."""
        return (*self.files, *self.closing)

    @property
    def key(self) -> str:
        """A hash that two runs share only if they write the same bytes from the same source."""
        digest = hashlib.sha256(__version__.encode())
        for source in sources_of(self.all_files):
            digest.update(f"\n{source.name}\0{source.size}\0{source.stamp}".encode())
        for file in self.all_files:
            digest.update(f"\n{file.name}\0".encode())
            digest.update(file.head)
            for copy in file.copies:
                digest.update(f"\n{copy.source.name}\0{copy.start}\0{copy.nbytes}".encode())
        return digest.hexdigest()


def sources_of(files: Iterable[OutputFile]) -> list[SourceFile]:
    """The source files that bytes of `files` come from, each once."""
    return list({copy.source.name: copy.source for f in files for copy in f.copies}.values())


def lay_out(checkpoint: Checkpoint) -> Layout:
    """Fix name, offset and origin of every output byte."""
    shards = [_weights_file(shard, checkpoint.source_of(shard)) for shard in checkpoint.shards]
    carried = [_whole(name, file) for name, file in checkpoint.files.items()]
    generated = encode_index(checkpoint) | {RECIPE_NAME: encode_recipe(checkpoint)}
    return Layout(
        (*shards, *(file for file in carried if file.name not in _CLOSING_FILES)),
        (
            *(file for file in carried if file.name in _CLOSING_FILES),
            *(OutputFile(name, content, ()) for name, content in generated.items()),
        ),
    )


def _weights_file(shard: Shard, source: SourceFile | None) -> OutputFile:
    """The source file that the shard equals, else a new header and runs of bytes."""
    if source:
        return _whole(shard.name, source)
    tensors = dict(sorted(shard.tensors.items(), key=lambda item: file_order(*item)))
    # Readers of safetensors in the wild insist on a format wherever there is metadata.
    metadata = {"format": "pt", **shard.metadata}
    head = encode_header({name: tensor.spec for name, tensor in tensors.items()}, metadata)
    return OutputFile(shard.name, head, _runs(tensors.values(), len(head)))


def _whole(name: str, file: SourceFile) -> OutputFile:
    return OutputFile(name, b"", (Copy(file, 0, file.size, 0),))


def _runs(tensors: Iterable[StoredTensor], offset: int) -> tuple[Copy, ...]:
    """One copy for each run of tensors that are neighbours in the source as in the output."""
    runs: list[Copy] = []
    for tensor in tensors:
        nbytes = tensor.spec.nbytes
        last = runs[-1] if runs else None
        if last and last.source == tensor.file and last.start + last.nbytes == tensor.start:
            runs[-1] = replace(last, nbytes=last.nbytes + nbytes)
        else:
            runs.append(Copy(tensor.file, tensor.start, nbytes, offset))
        offset += nbytes
    return tuple(runs)
