"""What the hub says the content of a file hashes to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK = 1 << 20  # bytes that are hashed at once


@dataclass(frozen=True)
class Checksum:
    """The hash of a file's content.

    Attributes:
        digest: in hexadecimal: SHA-256 of a large file, git's name (SHA-1) of another one.
        is_git: whether it is git's, which hashes the length first
            (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
    """

    digest: str
    is_git: bool

    def begin(self, size: int) -> _Hash:
        """A hash to feed with the content of a file of `size` bytes."""
        if self.is_git:
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        return hashlib.sha256()

    def fits(self, path: Path) -> bool:
        """Whether the file at `path` has this hash."""
        hasher = self.begin(path.stat().st_size)
        with path.open("rb") as file:
            for block in iter(partial(file.read, BLOCK), b""):
                hasher.update(block)
        return hasher.hexdigest() == self.digest
