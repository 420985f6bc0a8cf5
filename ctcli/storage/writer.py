"""The output: built beside its final place, journaled, published by a rename.

A killed run leaves DST as it was, and a partial directory from which the same command continues;
or DST as it was to become, and something to clear up. `storage.leftover` has the folder's contents.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ctcli.errors import CtcliError, os_errors_of
from ctcli.interrupts import run_is_done
from ctcli.storage.destination import Form, partial_of
from ctcli.storage.errors_table import CARD, fill
from ctcli.storage.journal import ErrorSums, JobRecord, line_of, read_journal
from ctcli.storage.leftover import (
    ATTEMPTS,
    CHECKPOINT,
    FOLDERS,
    JOURNAL,
    LOCK,
    PLAN,
    PUBLISHING,
    REPLACED,
    SOURCE,
    Leftover,
    check_partial,
    has_published,
    is_aside,
    is_published,
    note_publishing,
    refuse_gathering,
)

_ONLY_OURS = 0o700


class BusyError(CtcliError):
    """Another process works on the same destination."""


class PartialDirectory:
    """An output that is not yet complete. Use `open_partial` to get one."""

    def __init__(
        self,
        destination: Path,
        journal: IO[str],
        key: str,
        form: Form,
        *,
        fsync: bool,
        overwrite: bool,
        is_published: bool,
    ) -> None:
        self._destination = destination
        self._root = partial_of(destination)
        self._journal = journal
        self._key = key
        self._form = form
        self._fsync = fsync
        self._overwrite = overwrite
        self._is_published = is_published

    def create(self, name: str, size: int, mode: int = 0o666) -> int:
        """Create the file `name` at full length and return its descriptor.

        Args:
            name: path inside the output.
            size: its length.
            mode: who may do what with it, as far as the process's umask allows.
        """
        path = self._fresh_path(name)
        with os_errors_of(name, "creating"):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
            try:
                os.ftruncate(descriptor, size)
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def reopen(self, name: str) -> int:
        """Open the file `name`, of which an earlier run wrote some parts."""
        with os_errors_of(name, "opening"):
            return os.open(self.folder / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def link(self, name: str, source: Path) -> bool:
        """Hard-link `name` to `source`; False where the file system does not allow it."""
        path = self._fresh_path(name)
        try:
            os.link(source.resolve(), path)
        except OSError:
            return False
        return True

    def note_parts(self, parts: Sequence[JobRecord]) -> None:
        """Note in the journal that parts of files are written.

        A power cut may take them away again, so that with fsync only whole files count.
        """
        if not self._fsync:
            with os_errors_of(parts[0].file, "writing"):
                self._note(*parts)

    def sync(self, name: str, descriptor: int) -> None:
        """Have a complete file reach the disk, if that was asked for."""
        if self._fsync:
            with os_errors_of(name, "writing"):
                os.fsync(descriptor)

    def note_file(self, name: str, errors: ErrorSums) -> None:
        """Note in the journal that the file `name` is complete, and the errors of its modules."""
        with os_errors_of(name, "writing"):
            self._note((name, errors))

    @property
    def folder(self) -> Path:
        """Where the files grow, or lie already."""
        if self._is_published:
            return self._form.home(self._destination)
        return self._root / CHECKPOINT

    def drop_sources(self, kept: Collection[Path]) -> None:
        """Delete what earlier runs fetched, but for these files: whole, or else begun."""
        source = self._root / SOURCE
        with os_errors_of(str(source), "deleting"):
            there = {path for path in source.rglob("*") if path.is_file()}
            for path in there:
                whole = path.with_suffix("") if path.suffix == ".part" else path
                if whole not in kept or (whole != path and whole in there):
                    path.unlink()

    def publish(self, errors: ErrorSums) -> None:
        """Rename the output to DST, in place of what was there if that was asked for.

        Args:
            errors: what was measured of all modules, for the model card.

        Raises:
            CtcliError: it could not be done, and DST is as it was; or it was done, and might not
                survive a power cut.
        """
        if self._is_published:
            return
        with os_errors_of(str(self._destination), "publishing"):
            fill(self.folder / CARD, errors, self._fsync)
            if self._fsync:
                for folder, _, _ in os.walk(self.folder):
                    _sync_folder(Path(folder))
            noted = note_publishing(self._destination, self._form, self._key)
            _write(self._root / PUBLISHING, noted, self._fsync)
            if self._fsync:
                _sync_folder(self._root)
            replaced = self._root / REPLACED if self._overwrite else None
            run_is_done()
            self._form.publish(self.folder, self._destination, replaced)
        self._is_published = True
        if self._fsync:
            self._sync_published()

    def _sync_published(self) -> None:
        try:
            _sync_folder(self._destination.parent)
        except OSError as error:
            raise CtcliError(
                f"{self._destination}: it is complete, but syncing its folder failed: "
                f"{error.strerror}.",
                "A power cut might undo it: run `sync`, and check the disk.",
            ) from error

    def clear(self) -> None:
        """Delete the partial directory: the output is where it belongs."""
        clear_folder(self._root)

    def _fresh_path(self, name: str) -> Path:
        """A path to create `name` at. What a killed run left there may be a link to the source."""
        path = self.folder / name
        with os_errors_of(name, "creating"):
            make_folders(self.folder, name)
            path.unlink(missing_ok=True)
        return path

    def _note(self, *entries: tuple[Any, ...]) -> None:
        self._journal.write("".join(map(line_of, entries)))
        self._journal.flush()
        if self._fsync:
            os.fsync(self._journal.fileno())


@contextmanager
def open_partial(
    destination: Path,
    key: str,
    leftover: Leftover,
    form: Form,
    *,
    fsync: bool,
    overwrite: bool,
    is_gathered: bool = False,
) -> Iterator[PartialDirectory]:
    """Open the partial directory of `destination`, keeping what an earlier run wrote.

    Args:
        destination: the directory or file to publish in the end.
        key: identifies the output's bytes.
        leftover: the files and parts to keep, from `look_for_leftover`.
        form: what DST is to become.
        fsync: whether every file must reach the disk before it is called complete.
        overwrite: whether a DST with content is replaced.
        is_gathered: whether several processes made the files together.

    Raises:
        BusyError: another process is writing the same destination.
        CtcliError: another process has just done so, or several are making it together.
    """
    destination = destination.resolve()
    root = partial_of(destination)
    with locked(destination):
        if not is_gathered:
            refuse_gathering(destination)
        with os_errors_of(str(root), "preparing"):
            _put_back(destination)
            if _is_overtaken(destination, key, leftover, form):
                raise CtcliError(
                    f"{destination}: another ctcli process has just worked on it.",
                    "Run the same command again.",
                )
            if not leftover.is_published:
                if destination.exists():
                    form.check(destination, overwrite)
                _prepare(root, key, leftover)
            journal = (root / JOURNAL).open("a", encoding="utf-8")
        with _closing(journal):
            yield PartialDirectory(
                destination,
                journal,
                key,
                form,
                fsync=fsync,
                overwrite=overwrite,
                is_published=leftover.is_published,
            )


def put_back(destination: Path) -> bool:
    """Put DST back if a run that was to replace it died when it was out of the way.

    Returns:
        Whether it was.

    Raises:
        CtcliError: what lies there is not an earlier run's, or another process works on it.
    """
    destination = destination.resolve()
    if not check_partial(destination) or not is_aside(destination):
        return False
    with locked(destination), os_errors_of(str(destination), "putting back"):
        return _put_back(destination)


def _put_back(destination: Path) -> bool:
    if not is_aside(destination):
        return False
    root = partial_of(destination)
    (root / REPLACED).rename(destination)
    (root / PUBLISHING).unlink(missing_ok=True)
    return True


def _is_overtaken(destination: Path, key: str, leftover: Leftover, form: Form) -> bool:
    """Whether what was found of an earlier run is not there any more."""
    if leftover.is_published:
        return not is_published(destination, form, key)
    kept = leftover.journal
    # What is called complete may be what DST was before it was published.
    here = kept.complete.keys() - leftover.elsewhere or kept.parts
    if here and has_published(destination, form):
        return True
    noted = read_journal(partial_of(destination) / JOURNAL, key)
    return not noted.contains(kept, leftover.elsewhere)


def _prepare(root: Path, key: str, leftover: Leftover) -> None:
    """Delete what is not kept, and write a journal of what is."""
    kept = leftover.journal
    _remove(root / REPLACED)
    if not (kept.complete or kept.parts):
        _remove(root / CHECKPOINT)
    (root / PUBLISHING).unlink(missing_ok=True)
    (root / CHECKPOINT).mkdir(exist_ok=True)
    _drop_others(root / CHECKPOINT, leftover)
    # At no moment is there less in it than before.
    fresh = root / f"{JOURNAL}.new"
    _write(fresh, "".join(kept.lines(key)).encode())
    fresh.replace(root / JOURNAL)


def clear_folder(root: Path) -> None:
    """Delete a partial directory whose output is where it belongs.

    What says how far the run had come goes last: it is what a run that follows looks at.
    """
    for name in FOLDERS:
        _remove(root / name)
    notes = (PLAN, f"{JOURNAL}.new", JOURNAL, PUBLISHING, LOCK)
    with suppress(OSError):
        if not {path.name for path in root.iterdir()}.difference(notes):
            for name in notes:
                (root / name).unlink(missing_ok=True)
            root.rmdir()


def make_folders(root: Path, name: str) -> None:
    """Make the folders of the file `name` below `root`, which another process may have deleted.

    Raises:
        FileNotFoundError: it has.
    """
    for parent in [*PurePosixPath(name).parents][-2::-1]:
        (root / parent).mkdir(exist_ok=True)


@contextmanager
def locked(destination: Path, is_alone: bool = True) -> Iterator[None]:
    """Within the block, this process alone works on DST; or no other one alone.

    Raises:
        BusyError: another process has locked it.
    """
    root = partial_of(destination)
    check_partial(destination)
    with os_errors_of(str(destination), "creating"):
        if root.parent.name != ATTEMPTS:  # that one may have been cleared up with all the others
            root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir(_ONLY_OURS)
    check_partial(destination)
    with os_errors_of(str(destination), "creating"):
        lock = os.open(root / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _lock(lock, root / LOCK, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH):
            raise BusyError(
                f"{destination}: another ctcli process is writing it.", "Wait for it, or stop it."
            )
        yield
    finally:
        os.close(lock)


def is_locked(destination: Path) -> bool:
    """Whether another process works on DST now."""
    try:
        with (partial_of(destination) / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _lock(descriptor: int, path: Path, how: int) -> bool:
    """Lock a file, unless another process has, or has deleted it since it was opened."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _closing(journal: IO[str]) -> Iterator[None]:
    """Close it at last. What a full disk kept out of it has been told of, and is lost."""
    try:
        yield
    finally:
        with suppress(OSError):
            journal.close()


def _drop_others(folder: Path, leftover: Leftover) -> None:
    """Delete what would only take up room: files that are elsewhere, or to be made anew."""
    kept = leftover.journal.complete.keys() - leftover.elsewhere
    kept |= {part.file for part in leftover.journal.parts.values()}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def _remove(folder: Path) -> None:
    """Delete a folder as far as that can be done; however deep what DST was may be nested."""
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: bytes, fsync: bool = False) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
