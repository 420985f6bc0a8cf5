"""A share of the output files: which they are, and how one process makes them.

A share is a list of whole files, fixed by the plan alone, and is made by the ordinary engine in a
folder of its own. `storage.gathering` is where the files of all shares meet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ctcli import __version__
from ctcli.checkpoint.value import Origin, StepTable
from ctcli.engine.outbox import Publishing
from ctcli.engine.plan import Plan, Settings, check_resources, key_of, make_plan
from ctcli.engine.run import execute
from ctcli.errors import CtcliError, os_errors_of
from ctcli.events import Event, Notify
from ctcli.lazy.nodes import all_nodes
from ctcli.storage.agreement import Agreement
from ctcli.storage.destination import check_beside, check_sources
from ctcli.storage.errors_table import CARD
from ctcli.storage.gathering import FORMS, OverError
from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import Layout, OutputFile
from ctcli.units import Advance


class Meeting(Publishing, Protocol):
    """Where the files of all shares meet: `storage.gathering`, or `storage.hub.gathering`.

    Attributes:
        commit: what was published, if it was on a hub.
    """

    commit: str | None

    @property
    def pushed(self) -> Mapping[str, ErrorSums]:
        """The complete files of this process's share, with what was measured of each."""

    def is_made(self) -> bool:
        """Whether DST is there, as it is to become."""

    def look(self, names: Collection[str]) -> None:
        """See which files of a share are complete. Changes nothing."""

    def join(self) -> None:
        """Begin it, or see that it is for the same plan; `OverError` if DST is published."""

    def check_writing(self) -> None:
        """See whether this process sees it, once it is begun, and can write there."""

    def watching(self, advance: Advance) -> Advance:
        """`advance`, but that it may end the work with `OverError` once DST is published."""

    def has(self, names: Collection[str]) -> bool:
        """Whether these files are complete, whoever made them, or DST is published."""

    def leave(self, attempt: Path) -> None:
        """Delete what an attempt left of files that others have made."""

    def missing(self) -> list[str]:
        """The files that nobody has completed yet; none once DST is published."""

    def publish(self) -> ErrorSums:
        """Make DST of the files, which are all there; by whichever process comes first."""

    def give_up(self) -> None:
        """Delete it, unless there is something in it."""


@dataclass(frozen=True)
class Share:
    """One of several equal shares.

    Attributes:
        number: from 1.
        count: how many there are.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def label(self) -> str:
        """It as a file may be called."""
        return f"{self.number}-of-{self.count}"


def divide(layout: Layout, count: int) -> dict[str, int]:
    """Which of `count` shares each file belongs to, from 1: neighbours together, alike in bytes.

    A file counts by the bytes that are read and written for it. It belongs to the share in which
    its middle lies, so no share is larger than an equal one by more than a file.
    """
    weights = {file.name: _weight(file) for file in layout.all_files}
    total, before = sum(weights.values()) or 1, 0
    found = {}
    for name, weight in weights.items():
        middle = 2 * before + weight
        found[name] = min(count, 1 + middle * count // (2 * total))
        before += weight
    return found


def _weight(file: OutputFile) -> int:
    nodes = all_nodes(file.nodes)
    read = sum(tensor.spec.nbytes for node in nodes for tensor in node.reads)
    return file.size + sum(copy.nbytes for copy in file.copies) + read


def agree(
    layout: Layout,
    settings: Settings,
    origin: Origin,
    steps: Sequence[StepTable],
    count: int,
    command: Sequence[str],
) -> Agreement:
    """What all processes have to agree on that make a layout in shares.

    Args:
        layout: all output files.
        settings: how they are made.
        origin: SRC.
        steps: what is done to it.
        count: how many shares there are; 0: each file is one.
        command: the words that make a share, but for which.
    """
    owners = divide(layout, count) if count else {}
    forms = {form: name for name, form in FORMS.items()}
    return Agreement(
        key_of(layout, settings),
        __version__,
        {"name": origin.name, "commit": origin.commit, "headers_sha256": origin.headers_sha256},
        {source.name: (source.size, source.stamp) for source in layout.sources},
        steps,
        {"fsync": settings.fsync, "overwrite": settings.overwrite, "link": settings.link},
        count,
        forms[layout.form],
        {file.name: (file.size, owners.get(file.name, 0)) for file in layout.all_files},
        command,
    ).normalized()


def is_made(layout: Layout, destination: Path) -> bool:
    """Whether DST is already what the layout makes of it, by lengths, headers and small files."""
    home = layout.form.home(destination.resolve())
    for file in layout.all_files:
        try:
            head = b"" if file.name == CARD else file.head  # its errors are filled in at last
            with (home / file.name).open("rb") as made:
                if made.read(len(head)) != head or made.seek(0, 2) != file.size:
                    return False
        except OSError:
            return False
    return True


def check_destination_of(layout: Layout, destination: Path, settings: Settings) -> None:
    """Refuse a DST that must not become what the layout makes of it.

    Raises:
        CtcliError: it holds something, or files of SRC.
    """
    with os_errors_of(str(destination), "opening"):
        if destination.exists():
            layout.form.check(destination, settings.overwrite)
    check_sources(destination, (source.location for source in layout.sources))
    check_beside(destination, layout.beside, settings.overwrite)


def plan_share(
    layout: Layout,
    names: Collection[str],
    attempt: Path,
    settings: Settings,
    meeting: Meeting | None,
) -> Plan:
    """What is still to be done for a share. Writes nothing.

    Args:
        layout: all output files.
        names: those of the share.
        attempt: where they are made, from `gathering.attempt_of`.
        settings: how.
        meeting: where they go; None: DST is there, and nothing is to be done.

    Raises:
        CtcliError: another plan is under way there.
    """
    if meeting:
        meeting.look(names)
    complete: Mapping[str, ErrorSums] = meeting.pushed if meeting else {n: {} for n in names}
    return make_plan(layout.only(names), attempt, settings, complete)


def write_share(
    plan: Plan,
    meeting: Meeting,
    advance: Advance,
    notify: Notify,
) -> ErrorSums:
    """Make the files of a share, unless other processes complete them before.

    Args:
        plan: of the share.
        meeting: where the files go.
        advance: see `execute`.
        notify: see `execute`.

    Returns:
        What was measured of the modules in its files.

    Raises:
        BusyError: another process makes the share in the same place.
        CtcliError: see `execute`; or it cannot be done there.
    """

    def tell(event: Event) -> None:
        if event.kind != "shard_pushed" or not plan.settings.keeps:  # it has gone to a hub
            notify(event)

    try:
        meeting.join()
    except OverError:
        return {}
    check_resources(plan)
    try:
        return execute(plan, meeting.watching(advance), meeting, tell)
    except CtcliError:
        if not meeting.has([file.name for file in plan.layout.all_files]):
            raise
        meeting.leave(plan.destination)
        return {}
