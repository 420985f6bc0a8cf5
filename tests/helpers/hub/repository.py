"""Repositories as values: commits, trees and the names that git and LFS give to content."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from tests.helpers.hub.errors import HubError

BLOCK = 1 << 20  # files are hashed, copied and sent in pieces of this size
LFS_BYTES = 10 * 1000 * 1000  # content from this size on goes to LFS, whatever its name
_sha1 = partial(hashlib.sha1, usedforsecurity=False)  # git's choice of names, no safeguard


@dataclass(frozen=True)
class File:
    """One file of a commit, with the names that git and LFS give to its content."""

    path: str
    size: int
    sha256: str
    oid: str  # git blob id: of the content, or of the LFS pointer standing in for it
    pointer_size: int | None  # None: not in LFS

    def describe(self, name: str, oid: str, sha256: str) -> dict[str, Any]:
        """Describe the file in JSON; endpoints differ in how they call these three fields."""
        entry = {"type": "file", name: self.path, "size": self.size, oid: self.oid}
        if self.pointer_size is None:
            return entry
        lfs = {sha256: self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {**entry, "lfs": lfs}


Tree = Mapping[str, File]


@dataclass(frozen=True)
class Commit:
    """A tree, and what its author said of it."""

    tree: Tree
    parent: str | None
    title: str
    message: str = ""


@dataclass
class Repo:
    """A repository; large content is known to one repository, not to its neighbours."""

    gated: bool = False
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    def tree(self, branch: str) -> Tree:
        """What a branch holds."""
        return self.commits[self.branches[branch]].tree

    def history(self, sha: str | None) -> Iterable[tuple[str, Commit]]:
        """A commit and those before it."""
        while sha is not None:
            yield sha, self.commits[sha]
            sha = self.commits[sha].parent

    def put(self, branch: str, sha: str, commit: Commit) -> None:
        """Let a branch stand at a commit, which may be there already."""
        self.commits.setdefault(sha, commit)
        self.objects |= {f.sha256 for f in commit.tree.values() if f.pointer_size is not None}
        self.branches[branch] = sha

    def collect_garbage(self) -> None:
        """Forget large content that no branch shows."""
        shown = {file.sha256 for branch in self.branches for file in self.tree(branch).values()}
        self.objects &= shown


class Blobs:
    """Content by its SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Return where content of this hash is kept."""
        return self.folder / sha256

    def store(self, path: str, source: Path | bytes) -> File:
        """Keep content as the file ``path``; weights go to LFS."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as reader:
            sha256, oid = self._copy(reader, size)
        if is_large(path, size):
            return large_file(path, size, sha256)
        return File(path, size, sha256, oid, None)

    def _copy(self, reader: BinaryIO, size: int) -> tuple[str, str]:
        sha256, git = hashlib.sha256(), _sha1(b"blob %d\0" % size)
        copy = self.path(uuid.uuid4().hex)
        with copy.open("wb") as writer:
            while block := reader.read(BLOCK):
                sha256.update(block)
                git.update(block)
                writer.write(block)
        copy.replace(self.path(sha256.hexdigest()))
        return sha256.hexdigest(), git.hexdigest()


def is_large(path: str, size: int) -> bool:
    """Whether content of this name and size belongs into LFS."""
    return path.endswith(".safetensors") or size >= LFS_BYTES


def large_file(path: str, size: int, sha256: str) -> File:
    """Make a file in LFS."""
    version = "https://git-lfs.github.com/spec/v1"
    pointer = f"version {version}\noid sha256:{sha256}\nsize {size}\n".encode()
    oid = _sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    return File(path, size, sha256, oid, len(pointer))


def name_of(tree: Tree, *salt: str) -> str:
    """The sha of a commit: of what it holds, and of what else ``salt`` says."""
    listing = "".join(f"{file.sha256} {path}\n" for path, file in tree.items())
    return _sha1("\0".join((listing, *salt)).encode()).hexdigest()


def list_tree(tree: Tree, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
    """List what is below a folder, folders included, as the tree endpoint does."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in tree.items():
        if not path.startswith(prefix):
            continue
        cuts = [i for i, char in enumerate(path) if char == "/" and i >= len(prefix)]
        for name in (path[:cut] for cut in (cuts if recursive else cuts[:1])):
            oid = _sha1(name.encode()).hexdigest()
            entries[name] = {"type": "directory", "path": name, "size": 0, "oid": oid}
        if recursive or not cuts:
            entries[path] = file.describe("path", "oid", "oid")
    return list(entries.values())


def changed(tree: Tree, operations: Iterable[Mapping[str, Any]], repo: Repo, blobs: Blobs) -> Tree:
    """Apply the operations of a commit to a tree.

    Raises:
        HubError: what is deleted is not there, or large content was not uploaded before.
    """
    files = dict(tree)
    for operation in operations:
        value = operation["value"]
        path = value["path"]
        match operation["key"]:
            case "file":
                files[path] = blobs.store(path, base64.b64decode(value["content"]))
                if files[path].pointer_size is not None:
                    raise HubError(400, "", f"{path}: it belongs into LFS")
            case "lfsFile":
                sha256 = value["oid"]
                if sha256 not in repo.objects:
                    raise HubError(400, "", f"{path}: there is no LFS object {sha256}")
                files[path] = large_file(path, blobs.path(sha256).stat().st_size, sha256)
            case "deletedFile":
                if files.pop(path, None) is None:
                    raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
            case "deletedFolder":
                inside = [name for name in files if name.startswith(path)]
                for name in inside:
                    del files[name]
            case key:
                raise HubError(400, "", f"No such operation: {key}")
    return files
