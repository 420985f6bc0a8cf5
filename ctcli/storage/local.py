"""Files of a checkpoint in a local directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


def _stamp(status: os.stat_result) -> str:
    return str(status.st_mtime_ns)


def list_local(directory: Path) -> dict[str, LocalFile]:
    """All files below `directory` that belong to a checkpoint, by relative path.

    Links are followed (a hub cache consists of links), version control and caches left out.

    Raises:
        CtcliError: files that cannot be looked at; lists them all.
    """
    files, problems = {}, []
    for path in _walk(directory):
        name = path.relative_to(directory).as_posix()
        try:
            status = path.stat()
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}.")
            continue
        if path.is_file():
            files[name] = LocalFile(name, path, status.st_size, _stamp(status))
    if problems:
        raise CtcliError(problems, "Repair or remove these files.")
    return files


def _walk(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise CtcliError(
            f"{error.filename}: cannot be read: {error.strerror}.", "Check its permissions."
        )

    seen = set()
    for folder, folders, files in os.walk(directory, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(folder))  # a link to a folder above would never end
        folders[:] = sorted(
            name
            for name in folders
            if name not in _NOT_CONTENT and os.path.realpath(Path(folder, name)) not in seen
        )
        yield from (Path(folder, name) for name in sorted(files) if name not in _NOT_CONTENT)
