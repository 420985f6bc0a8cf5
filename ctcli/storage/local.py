"""Files of a checkpoint in a local directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctcli.errors import CtcliError, os_errors_of
from ctcli.units import Advance

_NOT_CONTENT = {".cache", ".git", ".gitattributes", "__pycache__", ".DS_Store"}


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine; `name` is its path inside the checkpoint."""

    name: str
    location: Path
    size: int
    stamp: str
    fetch_bytes: int = 0
    is_streamed: bool = False

    def __hash__(self) -> int:
        return hash(self.name)  # plans ask for it several times for each tensor

    def read(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `start` (fewer at the end of the file)."""
        with os_errors_of(self.name, "reading"), self.location.open("rb") as file:
            file.seek(start)
            return file.read(nbytes)

    def fetch(self, advance: Advance) -> Path:  # noqa: ARG002 (nothing to download here)
        """Return the file's path.

        Raises:
            CtcliError: the file is not the one that was listed any more.
        """
        with os_errors_of(self.name, "reading"):
            status = self.location.stat()
        if (status.st_size, _stamp(status)) != (self.size, self.stamp):
            raise CtcliError(
                f"{self.name}: it has changed since this run began.",
                "Leave SRC alone while ctcli runs, then run the same command again.",
            )
        return self.location

    def fetch_pieces(self, pieces: Sequence[range], advance: Advance) -> Path:  # noqa: ARG002
        """All of it, as it is not streamed."""
        return self.fetch(advance)

    def release(self) -> None:
        """Nothing was fetched."""


def _stamp(status: os.stat_result) -> str:
    return str(status.st_mtime_ns)


def local_file(name: str, path: Path) -> LocalFile:
    """The file at `path`.

    Raises:
        OSError: it cannot be looked at.
    """
    status = path.stat()
    return LocalFile(name, path, status.st_size, _stamp(status))


def list_local(directory: Path) -> dict[str, LocalFile]:
    """All files below `directory` that belong to a checkpoint, by relative path.

    Links are followed (a hub cache consists of links), version control and caches left out.

    Raises:
        CtcliError: files that cannot be looked at; lists them all.
    """
    files, problems = {}, []
    for path in _walk(directory, frozenset()):
        name = path.relative_to(directory).as_posix()
        try:
            file = local_file(name, path)
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}.")
            continue
        if path.is_file():
            files[name] = file
    if problems:
        raise CtcliError(problems, "Repair or remove these files.")
    return files


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """All files below `folder`; a link to a folder above it, which would never end, is skipped."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os_errors_of(str(folder), "reading"):
        paths = sorted(path for path in folder.iterdir() if path.name not in _NOT_CONTENT)
    for path in paths:
        if path.is_dir():
            yield from _walk(path, above | {real})
        else:
            yield path
