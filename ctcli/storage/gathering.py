"""The folder in which the files of several processes meet, and how DST is made of them.

Each process makes its share of the files in a folder of its own (an attempt), and renames each of
them to the common one when it is complete. So any number of attempts at a file, side by side or
after each other, end in one whole file. Nothing here relies on locks that reach other machines:
who publishes has renamed the common folder, which only one process can.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from platform import node

from ctcli.errors import CtcliError, os_errors_of
from ctcli.storage.agreement import HINT, Agreement
from ctcli.storage.destination import DIRECTORY, ONE_FILE, Form, partial_of
from ctcli.storage.journal import ErrorSums, Journal
from ctcli.storage.layout import OutputFile
from ctcli.storage.leftover import (
    ATTEMPTS,
    CHECKPOINT,
    GATHERED,
    JOURNAL,
    LOCK,
    MEASURED,
    PLAN,
    Leftover,
    check_partial,
    is_published,
    look_for_leftover,
)
from ctcli.storage.writer import (
    BusyError,
    clear_folder,
    is_locked,
    locked,
    make_folders,
    open_partial,
)
from ctcli.units import Advance

FORMS: Mapping[str, Form] = {"directory": DIRECTORY, "file": ONE_FILE}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# What is waited for takes as long as some renames, or `fsync` of folders.
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_WATCH_SECONDS = 1.0


class OverError(CtcliError):
    """DST is published, or about to be: there is nothing left to do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: other processes have completed it.", "There is nothing to do.")


def attempt_of(destination: Path, label: str) -> Path:
    """Where a process makes its share: as if it were a DST, with a partial directory beside it.

    What a killed process of this machine left is continued. The machine is part of the name, since
    locks may not reach others.

    Args:
        destination: DST.
        label: the share, as a file may be called.

    Raises:
        BusyError: so many processes make it that something is wrong.
    """
    return attempt_in(partial_of(destination) / ATTEMPTS, label)


def attempt_in(folder: Path, label: str) -> Path:
    """See `attempt_of`; in a folder of the caller's choice."""
    for number in range(100):
        found = folder / f"{label}.{_machine()}.{number}"
        if not is_locked(found):
            return found
    raise BusyError(f"{folder}: too many processes make {label}.", "Stop some of them.")


def _machine() -> str:
    """Tells machines apart, as far as locks of files are certain: by their kernel."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip().replace("-", "")[:12]
    return sha256(node().encode()).hexdigest()[:12]


class Gathering:
    """The common folder; see `engine.shares.Meeting`.

    Args:
        destination: DST.
        agreement: what this process would make.
        is_made: whether DST is there, as it is to become.
    """

    def __init__(
        self, destination: Path, agreement: Agreement, is_made: Callable[[], bool]
    ) -> None:
        self.is_made = is_made
        self.commit: str | None = None
        self._destination = destination.resolve()
        self._root = partial_of(destination)
        self._agreement = agreement
        self._lock = threading.Lock()
        self._taken: dict[str, ErrorSums] = {}

    def look(self, names: Collection[str]) -> None:
        """See which files of a share are complete. Changes nothing.

        Raises:
            CtcliError: the folder is for another plan, or no folder that ctcli made.
        """
        if there := read_agreement(self._destination):
            self._check(there)
        self._taken = {
            name: read_errors(self._root, name) for name in names if self._is_complete(name)
        }

    def join(self) -> None:
        """Begin the common folder, or see that it is for the same plan.

        Raises:
            OverError: DST is published, or about to be.
            CtcliError: the folder is for another plan, or one process works on DST alone.
        """
        for is_last in _tries():
            try:
                with locked(self._destination, is_alone=False):
                    is_begun = (self._root / PLAN).exists()
                    is_over = not is_begun and self.is_made()
                    if not is_begun and not is_over:
                        self._begin()
                break
            except BusyError:
                # Another process publishes, or works alone.
                if is_last or not (self._root / PLAN).exists():
                    raise
        if is_over:
            self._clear()
            raise OverError(str(self._destination))
        if (there := read_agreement(self._destination)) is None:
            raise OverError(str(self._destination))
        self._check(there)

    def _check(self, there: Agreement) -> None:
        if differences := there.differences(self._agreement):
            where = f"{self._destination}: the parts there are of another plan"
            raise CtcliError([f"{where}: {each}" for each in differences], HINT)

    def _begin(self) -> None:
        """Write the plan down, unless another process does at this moment."""
        if (self._root / JOURNAL).exists() or (self._root / CHECKPOINT).exists():
            raise CtcliError(
                f"{self._destination}: a run by one process was interrupted there.",
                f"Continue it by the command that began it, or delete {self._root}.",
            )
        with os_errors_of(str(self._root), "preparing"):
            for folder in (GATHERED, MEASURED, ATTEMPTS):
                (self._root / folder).mkdir(exist_ok=True)
            fresh = _fresh(self._root, PLAN)
            fresh.write_bytes(self._agreement.encode())
            try:
                os.link(fresh, self._root / PLAN)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                fresh.rename(self._root / PLAN)
            fresh.unlink(missing_ok=True)

    @property
    def pushed(self) -> Mapping[str, ErrorSums]:
        """The complete files of this process's share, with what was measured of each."""
        with self._lock:
            return dict(self._taken)

    def takes(self, file: OutputFile) -> bool:  # noqa: ARG002
        """Whether a file goes there as soon as it is complete: all do."""
        return True

    def push(self, name: str, path: Path, errors: ErrorSums, advance: Advance) -> None:  # noqa: ARG002
        """Take a complete file away from where it was made.

        Raises:
            OverError: DST is published, or about to be, with the same file made elsewhere.
        """
        with os_errors_of(name, "writing"):
            try:
                if errors:
                    make_folders(self._root / MEASURED, name)
                    _write(self._root, f"{MEASURED}/{name}.json", json.dumps(errors))
                make_folders(self._root / GATHERED, name)
                path.rename(self._root / GATHERED / name)
            except FileNotFoundError as error:
                raise OverError(name) from error
        with self._lock:
            self._taken[name] = errors

    def finish(
        self,
        files: Mapping[str, bytes | Path],  # noqa: ARG002
        advance: Advance,  # noqa: ARG002
        then: Callable[[], None],  # noqa: ARG002
    ) -> str:
        """This share is complete, and DST need not be: nothing is published."""
        return ""

    def watching(self, advance: Advance) -> Advance:
        """`advance`, but that it ends the work with `OverError` soon after DST is published."""
        due = time.monotonic()

        def watch(nbytes: int) -> None:
            nonlocal due
            if (now := time.monotonic()) >= due:
                due = now + _WATCH_SECONDS
                if not (self._root / PLAN).exists():
                    raise OverError(str(self._destination))
            advance(nbytes)

        return watch

    def leave(self, attempt: Path) -> None:
        """Delete what an attempt made since the folder was cleared up.

        Raises:
            CtcliError: it was not cleared up, but deleted.
        """
        if not (self._root / PLAN).exists():
            shutil.rmtree(partial_of(attempt), ignore_errors=True)
            self._clear()
        if not self._root.exists() and not self.is_made():
            hint = "Make all parts again, in a folder that nobody deletes."
            raise CtcliError(f"{self._root}: it was deleted.", hint)

    def _clear(self) -> None:
        """Delete the folder, if this process made it and nobody uses it."""
        if (self._root / PLAN).exists():
            return
        with suppress(OSError):
            (self._root / ATTEMPTS).rmdir()
        if (self._root / LOCK).exists():
            with suppress(BusyError, OSError), locked(self._destination):
                if [path.name for path in self._root.iterdir()] == [LOCK]:
                    (self._root / LOCK).unlink()
        with suppress(OSError):
            self._root.rmdir()

    def has(self, names: Collection[str]) -> bool:
        """Whether these files are complete, whoever made them, or DST is published."""
        return not (self._root / PLAN).exists() or all(map(self._is_complete, names))

    def missing(self) -> list[str]:
        """The files that nobody has completed yet; none once DST is what it is to become."""
        return [] if self.is_made() else missing_files(self._destination, self._agreement)

    def publish(self) -> ErrorSums:
        """See `publish`."""
        return publish(self._destination, self._agreement)

    def check_writing(self) -> None:
        """See whether this process sees the folder, and can write there.

        Raises:
            CtcliError: it does not, or cannot.
        """
        there = read_agreement(self._destination)
        if there is None or there.key != self._agreement.key:
            raise CtcliError(
                f"{self._root}: it does not see this folder of the others.",
                "Choose a DST on a file system that all workers see, by the same path.",
            )
        probe = _fresh(self._root, "probe")
        with os_errors_of(str(probe.parent), "writing"):
            probe.write_bytes(b"")
            probe.unlink()

    def give_up(self) -> None:
        """Delete the folder of a job that came to nothing, unless there is something in it."""
        with suppress(OSError):
            for folder in (ATTEMPTS, GATHERED):
                if any((self._root / folder).iterdir()):
                    return
            (self._root / PLAN).unlink()
            for folder in (ATTEMPTS, GATHERED, MEASURED):
                (self._root / folder).rmdir()
            (self._root / LOCK).unlink()
            self._root.rmdir()

    def _is_complete(self, name: str) -> bool:
        if (self._root / PLAN).exists() and not (self._root / GATHERED).exists():
            return True  # all were, and DST is being made of them
        with suppress(FileNotFoundError, NotADirectoryError):
            found = (self._root / GATHERED / name).stat().st_size
            return found == self._agreement.sizes[name]
        return False


def read_agreement(destination: Path) -> Agreement | None:
    """What the processes have agreed on that make DST; None: there are none.

    Raises:
        CtcliError: another version of ctcli wrote it, or the folder is not one that ctcli made.
    """
    if not check_partial(destination):
        return None
    path = partial_of(destination) / PLAN
    try:
        return Agreement.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CtcliError(f"{path}: it is of another version of ctcli.", HINT) from error


def missing_files(destination: Path, agreement: Agreement) -> list[str]:
    """The files of a plan that nobody has completed yet, in order; none once all were."""
    root = partial_of(destination)
    gathered, missing = root / GATHERED, []
    for name, size in agreement.sizes.items():
        try:
            if (gathered / name).stat().st_size != size:
                missing.append(name)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(name)
    # All of them may have been claimed while they were counted.
    return missing if gathered.exists() or not (root / PLAN).exists() else []


def read_errors(root: Path, name: str) -> ErrorSums:
    """What was measured of the modules in a file; nothing if that is not known any more."""
    try:
        found: ErrorSums = json.loads((root / MEASURED / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def publish(destination: Path, agreement: Agreement) -> ErrorSums:
    """Make DST of the files, which are all there; by whichever process comes first.

    Others wait until that has happened, and do it if the first one dies.

    Returns:
        What was measured of every module.

    Raises:
        CtcliError: it could not be done, and DST is as it was.
    """
    destination = destination.resolve()
    root, form = partial_of(destination), FORMS[agreement.form]
    complete = {name: read_errors(root, name) for name in agreement.files}
    errors = {module: found for each in complete.values() for module, found in each.items()}
    _claim(root, Journal(complete, {}), agreement.key)
    for is_last in _tries():
        if not (root / PLAN).exists():
            clear_up(destination)
            break  # another process has published it
        try:
            leftover, lost = _look(destination, agreement)
            if lost:  # or another process published it while we looked
                leftover, lost = _look(destination, agreement)
            if lost and not (root / PLAN).exists():
                continue
            if lost:
                problems = [
                    f"{root / CHECKPOINT / name}: it was whole, and is not." for name in lost
                ]
                raise CtcliError(problems, f"Delete {root}, and make all parts again.")
            with open_partial(
                destination,
                agreement.key,
                leftover,
                form,
                fsync=agreement.settings["fsync"],
                overwrite=agreement.settings["overwrite"],
                is_gathered=True,
            ) as partial:
                partial.publish(errors)
                partial.clear()
            break
        except CtcliError as error:
            is_over = not (root / PLAN).exists()
            if not is_over and (is_last or not isinstance(error, BusyError)):
                raise
    return errors


def _look(destination: Path, agreement: Agreement) -> tuple[Leftover, list[str]]:
    """What is there of DST, all files of which were complete; and those that are not any more."""
    form = FORMS[agreement.form]
    found = look_for_leftover(destination, agreement.key, agreement.sizes, {}, form)
    complete = agreement.files if found.is_published else found.journal.complete
    return found, [name for name in agreement.files if name not in complete]


def clear_up(destination: Path) -> None:
    """Delete what a process left that died after it had published DST."""
    root = partial_of(destination)
    if root.exists() and destination.exists() and not (root / PLAN).exists():
        with suppress(BusyError, FileNotFoundError), locked(destination):
            left = {path.name for path in root.iterdir()}
            if left == {LOCK} or any(is_published(destination, form) for form in FORMS.values()):
                clear_folder(root)


def _claim(root: Path, journal: Journal, key: str) -> None:
    """Take all files for publishing, which only one process can, once they are all noted."""
    with os_errors_of(str(root), "publishing"), suppress(FileNotFoundError):
        if (root / GATHERED).exists():
            _write(root, JOURNAL, "".join(journal.lines(key)))
            (root / GATHERED).rename(root / CHECKPOINT)


def _fresh(root: Path, name: str) -> Path:
    """A file in a common folder that no other process or thread uses, and that goes with it."""
    return root / ATTEMPTS / f"{name}.{_machine()}.{os.getpid()}.{threading.get_ident()}"


def _write(root: Path, name: str, text: str) -> None:
    """Write a file of a common folder that other processes see whole or not at all."""
    fresh = _fresh(root, PurePosixPath(name).name)
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(root / name)


def _tries() -> Iterator[bool]:
    """Again and again, with pauses; says whether it is for the last time."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        yield False
        time.sleep(_PAUSE_SECONDS)
    yield True
