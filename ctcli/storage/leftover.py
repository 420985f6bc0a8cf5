"""What an earlier run left beside DST, and how far it had come.

    .DST.ctcli-partial/
        lock          held by the process that works here; tells that the folder is ours
        journal       what of the output is written already
        publishing    written just before DST is replaced: the plan, and which inode becomes DST
        checkpoint/   becomes DST; where DST is a file, what is in here goes to its folder
        source/       weights files of a hub while they are read (--stream)
        replaced/     the former DST, for a moment, where two folders cannot change places at once
        plan          what processes that make DST together agree on (see `storage.gathering`)
        gathered/     the files that these have completed; becomes checkpoint/ when all are there
        measured/     what was measured of the modules of each of these files
        attempts/     for each such process, a folder like this one

The folder lies where others may write, too. So nothing in it is touched unless it is a real folder
that belongs to this user, or to whom the folder above belongs, and holds the lock.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ctcli.errors import CtcliError, os_errors_of
from ctcli.storage.destination import Form, partial_of
from ctcli.storage.journal import ErrorSums, Journal, is_foreign, read_journal

LOCK, JOURNAL, PUBLISHING = "lock", "journal", "publishing"
CHECKPOINT, SOURCE, REPLACED = "checkpoint", "source", "replaced"
PLAN, GATHERED, MEASURED, ATTEMPTS = "plan", "gathered", "measured", "attempts"
_FILES = (LOCK, JOURNAL, PUBLISHING, PLAN)
FOLDERS = (CHECKPOINT, SOURCE, REPLACED, GATHERED, MEASURED, ATTEMPTS)


@dataclass(frozen=True)
class Leftover:
    """What an earlier run left behind for the same DST.

    Attributes:
        journal: the files that need not be written again, and parts of others.
        reclaimable: disk bytes held by leftover files that this run will delete or finish.
        foreign: disk bytes of what a run with another plan left, which this one will delete.
        elsewhere: those of the complete files that need not be on this disk.
        is_published: whether that run came to its end but for clearing up: DST is what it made.
    """

    journal: Journal
    reclaimable: int
    foreign: int = 0
    elsewhere: frozenset[str] = frozenset()
    is_published: bool = False

    def without_parts(self) -> Leftover:
        """Of it, the complete files only."""
        return replace(self, journal=Journal(self.journal.complete, {}))


def check_partial(destination: Path) -> bool:
    """Whether an earlier run's folder is there.

    Raises:
        CtcliError: something else is there, which is not to be touched.
    """
    root = partial_of(destination)
    with os_errors_of(str(root), "opening"):
        try:
            status = root.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        owners = {os.geteuid(), root.parent.stat().st_uid}
        if stat.S_ISDIR(status.st_mode) and status.st_uid in owners:
            found = {entry.name: entry for entry in os.scandir(root)}
            real = all(found[n].is_file(follow_symlinks=False) for n in _FILES if n in found)
            real &= all(found[n].is_dir(follow_symlinks=False) for n in FOLDERS if n in found)
            if real and (LOCK in found or not found):
                return True
    raise CtcliError(
        f"{root}: it is where the output grows, and is not a folder that ctcli made.",
        "Move it away, or choose another DST.",
    )


def look_for_leftover(
    destination: Path,
    key: str,
    sizes: Mapping[str, int],
    elsewhere: Mapping[str, ErrorSums],
    form: Form,
) -> Leftover:
    """See what an earlier run left in the partial directory. Changes nothing.

    Args:
        destination: the directory or file to publish in the end.
        key: identifies the output's bytes; files made under another key do not count.
        sizes: length of every output file by name, to check those called complete.
        elsewhere: files that are on a hub and need not be here, with their errors.
        form: what DST is to become.

    Raises:
        CtcliError: what is there is not an earlier run's folder.
    """
    destination = destination.resolve()
    root = partial_of(destination)
    there = check_partial(destination)
    journal = read_journal(root / JOURNAL, key) if there else Journal({}, {})
    if there and has_published(destination, form):
        if is_published(destination, form, key):
            # Of a journal that is gone already, or cannot be read, only the errors are missing.
            made = {name: journal.complete.get(name, {}) for name in sizes}
            return Leftover(Journal(made, {}), 0, is_published=True)
        journal = Journal({}, {})
    found = _files_in(root / CHECKPOINT)
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
    streamed = _files_in(root / SOURCE).values()
    reclaimable += sum(status.st_blocks * 512 for status in streamed if status.st_nlink == 1)
    foreign = reclaimable if there and is_foreign(root / JOURNAL, key) else 0
    return Leftover(Journal(complete, parts), reclaimable, foreign, frozenset(elsewhere))


def _files_in(folder: Path) -> dict[str, os.stat_result]:
    """The files in a folder, by name; another process may rename or delete it meanwhile."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = (path := Path(parent, name)).stat()
                if stat.S_ISREG(status.st_mode):
                    found[path.relative_to(folder).as_posix()] = status
    return found


def refuse_gathering(destination: Path) -> None:
    """Refuse to work alone on a DST that several processes make together.

    Raises:
        CtcliError: its folder is theirs.
    """
    root = partial_of(destination)
    if (root / PLAN).exists():
        raise CtcliError(
            f"{destination}: parts of it have been made already, and lie in {root}.",
            f"Make the others and run `ctcli finish`, or delete {root.name} to begin anew.",
        )


def note_publishing(destination: Path, form: Form, key: str) -> bytes:
    """What to write down before DST is replaced, so that the next run can tell whether it was."""
    inode = form.becomes(partial_of(destination) / CHECKPOINT, destination).lstat().st_ino
    return json.dumps([key, inode]).encode()


def has_published(destination: Path, form: Form) -> bool:
    """Whether the run that left something had published DST; it may have been moved since."""
    destination = destination.resolve()
    if (noted := _noted(destination)) is None or is_aside(destination):
        return False
    made = form.becomes(partial_of(destination) / CHECKPOINT, destination)
    return not made.exists() or made.lstat().st_ino != noted[1]


def is_published(destination: Path, form: Form, key: str | None = None) -> bool:
    """Whether DST is what that run published, according to that plan if a key is given."""
    noted = _noted(destination)
    if noted is None or not has_published(destination, form) or not destination.exists():
        return False
    return destination.stat().st_ino == noted[1] and key in (None, noted[0])


def is_aside(destination: Path) -> bool:
    """Whether a run died between the two renames by which it was to replace DST."""
    root = partial_of(destination)
    return not destination.exists() and (root / REPLACED).exists() and (root / CHECKPOINT).exists()


def _noted(destination: Path) -> tuple[str, int] | None:
    try:
        key, inode = json.loads((partial_of(destination) / PUBLISHING).read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return key, inode
