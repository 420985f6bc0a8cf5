"""A file on a hub that lies on this disk only as long as it is used."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ctcli.errors import os_errors_of
from ctcli.lazy.tensors import SourceFile
from ctcli.storage.hub.checksum import BLOCK
from ctcli.storage.hub.errors import hub_errors
from ctcli.storage.hub.files import HubFile
from ctcli.storage.hub.retries import Retries
from ctcli.units import Advance

if TYPE_CHECKING:
    from hashlib import _Hash

_PART, _PIECES = ".part", ".pieces"
_PIECE_BYTES = 32 << 20  # held in memory at once


@dataclass(frozen=True)
class StreamedFile:
    """A file of a hub that `fetch` puts into a folder and `release` deletes there.

    It grows under another name and gets its own once its hash is checked, so a file under its own
    name is whole, and what a killed process fetched of it is continued by the next one. At any
    time at most one process may use the folder.

    Attributes:
        source: the file on the hub, pinned to a commit.
        folder: where it goes, in a directory of the commit's name.
    """

    source: HubFile
    folder: Path
    is_streamed: bool = field(default=True, init=False)
    _pieces: list[Path] = field(default_factory=list, compare=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Path inside the checkpoint, with forward slashes."""
        return self.source.name

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.source.size

    @property
    def stamp(self) -> str:
        """Its hash on the hub, as without streaming."""
        return self.source.stamp

    @property
    def location(self) -> Path:
        """Where it lies once it is fetched."""
        return self.path

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched."""
        return self.folder / self.source.commit / self.name

    @property
    def disk_bytes(self) -> int:
        """Bytes of it that lie on this disk."""
        return _size(self.path) or _size(self._part)

    @property
    def fetch_bytes(self) -> int:
        """Bytes that `fetch` has to download."""
        return max(0, self.size - self.disk_bytes)

    @property
    def _part(self) -> Path:
        return self.path.with_name(self.path.name + _PART)

    def read(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `start`, from this disk or by a range request."""
        if not self.path.exists():
            return self.source.read(start, nbytes)
        with os_errors_of(self.name, "reading"), self.path.open("rb") as file:
            file.seek(start)
            return file.read(nbytes)

    def fetch(self, advance: Advance) -> Path:
        """Download the file, unless it is there, and return its path.

        Threads that ask at the same time wait for one download.

        Args:
            advance: told of bytes downloaded; of a negative number where they must come again.

        Raises:
            CtcliError: the hub or the disk failed, or other content came than announced, twice.
        """
        with self._lock:
            if self.path.exists():
                return self.path
            if self._pieces:
                return self._pieces[0]
            with os_errors_of(self.name, "writing"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                if self._complete(advance):
                    with os_errors_of(self.name, "writing"):
                        self._part.replace(self.path)
                    return self.path
                self._part.unlink()
                advance(-self.size)
            raise self.source.mismatch()

    def fetch_pieces(self, pieces: Sequence[range], advance: Advance) -> Path:
        """Download only these bytes; `fetch` then gives the same path, until `release`.

        The path is of a file that has nothing elsewhere. The hub tells no hash of a piece, so that
        only its length is checked, and a run that was killed fetches it anew.
        """
        with self._lock:
            path = self.path.with_name(self.path.name + _PIECES)
            with os_errors_of(self.name, "writing"):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._part.unlink(missing_ok=True)
                with path.open("wb") as file:
                    for piece in pieces:
                        for start in range(piece.start, piece.stop, _PIECE_BYTES):
                            stop = min(start + _PIECE_BYTES, piece.stop)
                            file.seek(start)
                            file.write(self.source.read(start, stop - start))
                            advance(stop - start)
                    file.truncate(self.size)
            self._pieces.append(path)
            return path

    def release(self) -> None:
        """Delete the file, or what there is of it; `fetch` would download it again."""
        with self._lock, os_errors_of(self.name, "deleting"):
            self.path.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
            while self._pieces:
                self._pieces.pop().unlink(missing_ok=True)

    def _complete(self, advance: Advance) -> bool:
        """Append to the part what is missing; whether the whole has its hash."""
        checksum = self.source.checksum
        hasher = checksum.begin(self.size) if checksum else hashlib.sha256()
        with os_errors_of(self.name, "writing"):
            file = self._part.open("a+b")
        with file:
            with os_errors_of(self.name, "reading"):
                file.seek(0)
                for block in iter(partial(file.read, BLOCK), b""):
                    advance(0)
                    hasher.update(block)
            self._append(file, hasher, advance)
        return checksum is None or hasher.hexdigest() == checksum.digest

    def _append(self, file: IO[bytes], hasher: _Hash, advance: Advance) -> None:
        """Download what is missing, through every break."""
        retries, done = Retries(advance), file.tell()
        with hub_errors(self.source.repo, self.source.commit, self.name):
            while done < self.size:
                try:
                    for block in self.source.stream(done, self.size):
                        with os_errors_of(self.name, "writing"):
                            file.write(block)
                            file.flush()
                        hasher.update(block)
                        done += len(block)
                        advance(len(block))
                        retries.progress()
                except Exception as error:
                    retries.pause(error)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def stream_files(files: Iterable[SourceFile], folder: Path) -> dict[str, SourceFile]:
    """Files by name, with those on a hub to be streamed through `folder` if they are weights."""
    return {
        file.name: StreamedFile(file, folder)
        if isinstance(file, HubFile) and file.name.endswith(".safetensors")
        else file
        for file in files
    }
