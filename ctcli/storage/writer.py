"""The output: built beside its final place, journaled, published by a rename.

    .DST.ctcli-partial/
        journal       what of the output is written already
        checkpoint/   becomes DST; where DST is a file, what is in here goes to its folder
        source/       weights files of a hub while they are read (--stream)
        replaced/     the former DST, for the moment between two renames (--overwrite)

A killed run leaves DST as it was, and a partial directory from which the same command continues.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO, Any

from ctcli.errors import CtcliError, os_errors_of
from ctcli.storage.destination import Form, partial_of
from ctcli.storage.journal import Errors, Journal, Part, is_foreign, line_of, read_journal


@dataclass(frozen=True)
class Leftover:
    """What an earlier run left behind for the same DST.

    Attributes:
        journal: the files that need not be written again, and parts of others.
        reclaimable: disk bytes held by leftover files that this run will delete or finish.
        foreign: disk bytes of what a run with another plan left, which this one will delete.
        elsewhere: those of the complete files that need not be on this disk.
    """

    journal: Journal
    reclaimable: int
    foreign: int = 0
    elsewhere: frozenset[str] = frozenset()

    def without_parts(self) -> Leftover:
        """Of it, the complete files only."""
        return replace(self, journal=Journal(self.journal.complete, {}))


def look_for_leftover(
    destination: Path, key: str, sizes: Mapping[str, int], elsewhere: Mapping[str, Errors]
) -> Leftover:
    """See what an earlier run left in the partial directory. Changes nothing.

    Args:
        destination: the directory or file to publish in the end.
        key: identifies the output's bytes; files made under another key do not count.
        sizes: length of every output file by name, to check those called complete.
        elsewhere: files that are on a hub and need not be here, with their errors.
    """
    root = partial_of(destination)
    files = [path for path in (root / "checkpoint").rglob("*") if path.is_file()]
    found = {path.relative_to(root / "checkpoint").as_posix(): path.stat() for path in files}
    journal = read_journal(root / "journal", key)
    sound = {name for name in found if found[name].st_size == sizes.get(name)}
    complete = {name: errors for name, errors in journal.complete.items() if name in sound}
    complete |= elsewhere
    # A file with further names may be the source's own, linked.
    own = {name for name in sound.difference(complete) if found[name].st_nlink == 1}
    parts = {place: part for place, part in journal.parts.items() if part.file in own}
    reclaimable = sum(
        status.st_blocks * 512
        for name, status in found.items()
        if name not in complete and status.st_nlink == 1
    )
    streamed = [path.stat() for path in (root / "source").rglob("*") if path.is_file()]
    reclaimable += sum(status.st_blocks * 512 for status in streamed if status.st_nlink == 1)
    foreign = reclaimable if is_foreign(root / "journal", key) else 0
    return Leftover(Journal(complete, parts), reclaimable, foreign, frozenset(elsewhere))


class PartialDirectory:
    """An output that is not yet complete. Use `open_partial` to get one."""

    def __init__(
        self, destination: Path, journal: IO[str], fsync: bool, overwrite: bool, form: Form
    ) -> None:
        self._destination = destination
        self._root = partial_of(destination)
        self._journal = journal
        self._fsync = fsync
        self._overwrite = overwrite
        self._form = form

    def create(self, name: str, size: int) -> int:
        """Create the file `name` at full length and return its descriptor."""
        path = self._fresh_path(name)
        with os_errors_of(name, "creating"):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(descriptor, size)
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def reopen(self, name: str) -> int:
        """Open the file `name`, of which an earlier run wrote some parts."""
        with os_errors_of(name, "opening"):
            return os.open(self._root / "checkpoint" / name, os.O_RDWR | os.O_CLOEXEC)

    def link(self, name: str, source: Path) -> bool:
        """Hard-link `name` to `source`; False where the file system does not allow it."""
        path = self._fresh_path(name)
        try:
            os.link(source.resolve(), path)
        except OSError:
            return False
        return True

    def note_part(self, part: Part) -> None:
        """Note in the journal that a part of a file is written.

        A power cut may take it away again, so that with fsync only whole files count.
        """
        if not self._fsync:
            with os_errors_of(part.file, "writing"):
                self._note(astuple(part))

    def sync(self, name: str, descriptor: int) -> None:
        """Have a complete file reach the disk, if that was asked for."""
        if self._fsync:
            with os_errors_of(name, "writing"):
                os.fsync(descriptor)

    def note_file(self, name: str, errors: Errors) -> None:
        """Note in the journal that the file `name` is complete, and the errors of its modules."""
        with os_errors_of(name, "writing"):
            self._note((name, errors))

    @property
    def folder(self) -> Path:
        """Where the files grow."""
        return self._root / "checkpoint"

    def drop_sources(self, kept: Collection[Path]) -> None:
        """Delete what earlier runs fetched, but for these files, whole or begun."""
        source = self._root / "source"
        with os_errors_of(str(source), "deleting"):
            for path in [path for path in source.rglob("*") if path.is_file()]:
                whole = path.with_suffix("") if path.suffix == ".part" else path
                if whole not in kept:
                    path.unlink()

    def discard(self) -> None:
        """Delete it all: the output is elsewhere."""
        shutil.rmtree(self._root, ignore_errors=True)

    def publish(self) -> None:
        """Rename the output to DST, in place of what was there if that was asked for."""
        with os_errors_of(str(self._destination), "publishing"):
            if self._fsync:
                for folder, _, _ in os.walk(self._root / "checkpoint"):
                    _sync_folder(Path(folder))
            replaced = self._root / "replaced" if self._overwrite else None
            self._form.publish(self._root / "checkpoint", self._destination, replaced)
            if self._fsync:
                _sync_folder(self._destination.parent)
        shutil.rmtree(self._root, ignore_errors=True)

    def _fresh_path(self, name: str) -> Path:
        """A path to create `name` at. What a killed run left there may be a link to the source."""
        path = self._root / "checkpoint" / name
        with os_errors_of(name, "creating"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        return path

    def _note(self, entry: tuple[Any, ...]) -> None:
        self._journal.write(line_of(entry))
        self._journal.flush()
        if self._fsync:
            os.fsync(self._journal.fileno())


@contextmanager
def open_partial(
    destination: Path,
    key: str,
    leftover: Leftover,
    fsync: bool,
    overwrite: bool,
    form: Form,
) -> Iterator[PartialDirectory]:
    """Open the partial directory of `destination`, keeping what an earlier run wrote.

    Args:
        destination: the directory or file to publish in the end.
        key: identifies the output's bytes.
        leftover: the files and parts to keep, from `look_for_leftover`.
        fsync: whether every file must reach the disk before it is called complete.
        overwrite: whether a DST with content is replaced.
        form: what DST is to become.

    Raises:
        CtcliError: another process is writing the same destination.
    """
    destination, kept = destination.resolve(), leftover.journal
    root = partial_of(destination)
    with os_errors_of(str(destination), "creating"):
        root.mkdir(parents=True, exist_ok=True)
        journal = (root / "journal").open("a+", encoding="utf-8")
    with _closing(journal):
        _lock(journal, destination)
        with os_errors_of(str(root), "preparing"):
            _restore_replaced(root, destination)
            if not read_journal(root / "journal", key).contains(kept, leftover.elsewhere):
                raise CtcliError(
                    f"{destination}: another ctcli process has just worked on it.",
                    "Run the same command again.",
                )
            if destination.exists():
                form.check(destination, overwrite)
            if not (kept.complete or kept.parts):
                shutil.rmtree(root / "checkpoint", ignore_errors=True)
            (root / "checkpoint").mkdir(exist_ok=True)
            _drop_others(root / "checkpoint", leftover)
            journal.truncate(0)
            journal.writelines(kept.lines(key))
            journal.flush()
        yield PartialDirectory(destination, journal, fsync, overwrite, form)


@contextmanager
def _closing(journal: IO[str]) -> Iterator[None]:
    """Close it at last. What a full disk kept out of it has been told of, and is lost."""
    try:
        yield
    finally:
        with suppress(OSError):
            journal.close()


def _lock(journal: IO[str], destination: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CtcliError(
            f"{destination}: another ctcli process is writing it.", "Wait for it, or stop it."
        ) from error


def _restore_replaced(root: Path, destination: Path) -> None:
    """Undo the first of two renames if a run died between them."""
    replaced = root / "replaced"
    if replaced.exists() and not destination.exists():
        replaced.rename(destination)
    shutil.rmtree(replaced, ignore_errors=True)


def _drop_others(folder: Path, leftover: Leftover) -> None:
    """Delete what would only take up room: files that are elsewhere, or to be made anew."""
    kept = leftover.journal.complete.keys() - leftover.elsewhere
    kept |= {part.file for part in leftover.journal.parts.values()}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
