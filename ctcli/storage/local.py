"""Files of a checkpoint in a local directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.tensors import SourceFile
from ctcli.units import Advance

_NOT_CONTENT = {".cache", ".git", ".gitattributes", "__pycache__", ".DS_Store"}
_MOST_FILES = 100_000
_DEEPEST = 64


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine.

    Attributes:
        name: path inside the checkpoint.
        location: where it lies.
        size: length in bytes.
        stamp: time of its last change.
        mode: who may do what with it.
    """

    name: str
    location: Path
    size: int
    stamp: str
    mode: int = 0o666
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
    return LocalFile(name, path, status.st_size, _stamp(status), stat.S_IMODE(status.st_mode))


@dataclass(frozen=True)
class Listing:
    """What lies in a local directory.

    Attributes:
        files: those of a checkpoint, by path inside it.
        leading_out: paths of links that lead out of it, and are not followed.
    """

    files: Mapping[str, LocalFile]
    leading_out: Sequence[str]

    @property
    def warnings(self) -> list[str]:
        """What to say of the links: each is named, as somebody may rely on it."""
        if not self.leading_out:
            return []
        names = ", ".join(self.leading_out)
        return [f"left out, since they are links that lead out of SRC: {names}."]


def mode_of(sources: Iterable[SourceFile]) -> int:
    """Who may do what with a file that is made of these: what is allowed for all of them.

    The owner may read and write it; a hub says nothing.
    """
    mode = 0o777
    for source in sources:
        mode &= source.mode if isinstance(source, LocalFile) else 0o666
    return mode | 0o600


def list_local(directory: Path) -> Listing:
    """All files below `directory` that belong to a checkpoint; of a file, it and config.json.

    Version control and caches are left out. A link is followed where it leads to something inside
    the directory, or, in a snapshot of a hub cache, to one of the cache's own files. Inside a
    folder behind a link, no further links to folders are followed: so the walk ends.

    Raises:
        CtcliError: files that cannot be looked at, which are all listed; or too many.
    """
    if directory.is_file():
        beside = (directory, directory.with_name("config.json"))
        return Listing({p.name: local_file(p.name, p) for p in beside if p.is_file()}, ())
    files, leading_out, problems = dict[str, LocalFile](), list[str](), list[str]()
    homes = _homes(directory)
    for path in _walk(directory, homes):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() and not _is_at_home(path, homes):
            leading_out.append(name)
            continue
        try:
            file = local_file(name, path)
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}.")
            continue
        if path.is_file():
            files[name] = file
    if problems:
        raise CtcliError(problems, "Repair or remove these files.")
    return Listing(files, leading_out)


def _homes(directory: Path) -> tuple[Path, ...]:
    """The real folders that links in `directory` may lead to."""
    real = Path(os.path.realpath(directory))
    # https://huggingface.co/docs/huggingface_hub/guides/manage-cache: snapshots/COMMIT/NAME is a
    # link to blobs/HASH.
    return (real, real.parents[1] / "blobs") if real.parent.name == "snapshots" else (real,)


def _is_at_home(path: Path, homes: Sequence[Path]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(home) for home in homes)


def _too_much(directory: Path, what: str) -> CtcliError:
    return CtcliError(f"{directory}: {what}.", "Name the folder that holds the checkpoint alone.")


def _leads_up(link: Path) -> bool:
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


def _walk(directory: Path, homes: Sequence[Path]) -> Iterator[Path]:
    """All files below `directory` in order, and links that lead out of `homes`."""
    seen, todo = 0, [(directory, False)]
    while todo:
        path, is_behind_link = todo.pop()
        is_link = path.is_symlink() and path != directory
        if not path.is_dir() or (is_link and not _is_at_home(path, homes)):
            yield path
        elif not (is_link and (is_behind_link or _leads_up(path))):
            with os_errors_of(str(path), "reading"):
                found = sorted(each for each in path.iterdir() if each.name not in _NOT_CONTENT)
            seen += len(found)
            if seen > _MOST_FILES:
                raise _too_much(directory, f"more than {_MOST_FILES:,} files and folders")
            if len(path.parts) - len(directory.parts) > _DEEPEST:
                raise _too_much(directory, f"folders nested more than {_DEEPEST} deep")
            todo += [(each, is_behind_link or is_link) for each in reversed(found)]
