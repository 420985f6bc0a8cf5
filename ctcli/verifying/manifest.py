"""SHA-256 of every file and tensor of a checkpoint, in a text that `sha256sum --check` reads.

Lines `HASH  FILE` stand for files; tensors follow as comments, `# HASH  DTYPE SHAPE  TENSOR`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.tensors import Stored
from ctcli.storage.local import LocalFile
from ctcli.units import Advance
from ctcli.verifying.findings import Finding
from ctcli.verifying.structure import Snapshot

_TITLE = "# SHA-256 of files (sha256sum --check), and of tensors: hash, dtype and shape, name"
_FILE = re.compile(r"(?P<hash>[0-9a-f]{64})  (?P<name>.+)")
_TENSOR = re.compile(r"# (?P<hash>[0-9a-f]{64})  (?P<spec>\w+ \[[0-9,]*\])  (?P<name>.*)")
_PIECE = 4 << 20


@dataclass(frozen=True)
class Manifest:
    """Hashes.

    Attributes:
        files: by path inside the checkpoint.
        tensors: dtype and shape with the hash, by name.
    """

    files: Mapping[str, str]
    tensors: Mapping[str, str]


def hash_files(
    files: Sequence[LocalFile], snapshot: Snapshot, workers: int, advance: Advance
) -> Manifest:
    """Hash files, each read once, and the tensors in them.

    Args:
        files: of the checkpoint.
        snapshot: the checkpoint.
        workers: threads, one file each.
        advance: is told bytes that were read.
    """
    held: dict[str, dict[str, Stored]] = {}
    for name, tensor in snapshot.tensors.items():
        held.setdefault(tensor.file.name, {})[name] = tensor
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda f: _hash(f, held.get(f.name, {}), advance), files))
    tensors = {name: text for _, each in found for name, text in each.items()}
    digests = {file.name: digest for file, (digest, _) in zip(files, found, strict=True)}
    return Manifest(dict(sorted(digests.items())), dict(sorted(tensors.items())))


def _hash(
    file: LocalFile, tensors: Mapping[str, Stored], advance: Advance
) -> tuple[str, dict[str, str]]:
    whole, found = hashlib.sha256(), {}
    with os_errors_of(file.name, "reading"), file.location.open("rb", buffering=0) as stream:
        for name, start, stop in _parts(file, tensors):
            own = hashlib.sha256()
            for piece in _pieces(stream.fileno(), start, stop):
                whole.update(piece)
                advance(len(piece))
                if name is not None:
                    own.update(piece)
            if name is not None:
                spec = tensors[name].spec
                shape = json.dumps(list(spec.shape), separators=(",", ":"))
                found[name] = f"{own.hexdigest()}  {spec.dtype} {shape}"
    return whole.hexdigest(), found


def _parts(file: LocalFile, tensors: Mapping[str, Stored]) -> Iterator[tuple[str | None, int, int]]:
    """The file from start to end: each tensor, and what is between them."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda i: (i[1].start, i[1].spec.nbytes)):
        if tensor.start > position:
            yield None, position, tensor.start
        position = tensor.start + tensor.spec.nbytes
        yield name, tensor.start, position
    yield None, position, file.size


def _pieces(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        piece = os.pread(descriptor, min(_PIECE, stop - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write it.

    Raises:
        CtcliError: it cannot be written, or a name has a line break.
    """
    lines = [_TITLE, *(f"{digest}  {name}" for name, digest in manifest.files.items())]
    lines += [f"# {text}  {name}" for name, text in manifest.tensors.items()]
    broken = [line for line in lines if len(line.splitlines()) != 1]
    if broken:
        raise CtcliError([f"{line!r}: its name has a line break." for line in broken], "Rename it.")
    with os_errors_of(str(path), "writing"):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read it.

    Raises:
        CtcliError: it cannot be read, or has lines that no manifest has.
    """
    with os_errors_of(str(path), "reading"):
        content = path.read_bytes()
    files, tensors, problems = {}, {}, []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        if match := _FILE.fullmatch(line):
            files[match["name"]] = match["hash"]
        elif match := _TENSOR.fullmatch(line):
            tensors[match["name"]] = f"{match['hash']}  {match['spec']}"
        elif line and not line.startswith("#"):
            problems.append(f"{path}: line {number} has no hash.")
    if problems or not files:
        raise CtcliError(
            problems or f"{path}: no hashes of files.", "Name a manifest, or a file to make."
        )
    return Manifest(files, tensors)


def compare(expected: Manifest, found: Manifest) -> Iterator[Finding]:
    """Where hashes are not those of a manifest."""
    for kind, should, are in (
        ("file", expected.files, found.files),
        ("tensor", expected.tensors, found.tensors),
    ):
        for name in sorted(should.keys() | are.keys()):
            if name not in are:
                yield Finding("hash", name, f"the {kind} is in the manifest, and not there.")
            elif name not in should:
                yield Finding("hash", name, f"the {kind} is not in the manifest.")
            elif should[name] != are[name]:
                yield Finding("hash", name, f"the {kind} is not the one of the manifest.")
