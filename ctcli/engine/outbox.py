"""Complete output files on their way to a hub while a run goes on, and off this disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import Layout, OutputFile
from ctcli.units import Advance

_AT_ONCE = 2


class Publishing(Protocol):
    """Where complete files go: `storage.hub.publication`, or `storage.gathering`."""

    @property
    def pushed(self) -> Mapping[str, object]:
        """What has been taken, by name."""

    def takes(self, file: OutputFile) -> bool:
        """Whether a file goes there as soon as it is complete."""

    def push(self, name: str, path: Path, errors: ErrorSums, advance: Advance) -> None:
        """Upload a complete file; from any thread."""

    def finish(
        self, files: Mapping[str, bytes | Path], advance: Advance, then: Callable[[], None]
    ) -> str:
        """Publish all of it in one commit, call `then`, clean up; returns the commit."""


class Outbox:
    """The files of a run that go to a hub; used by one thread.

    Args:
        publication: the checkpoint on the hub; None: nothing goes anywhere.
        folder: where the files lie.
        keeps: whether they stay there.
        advance: told of bytes uploaded; may raise to end the work.
    """

    def __init__(
        self, publication: Publishing | None, folder: Path, keeps: bool, advance: Advance
    ) -> None:
        self._publication = publication
        self._folder = folder
        self._keeps = keeps
        self._advance = advance
        self._sending: dict[Future[None], OutputFile] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE)

    @property
    def sending(self) -> Collection[Future[None]]:
        """What is on its way."""
        return self._sending

    def add(self, file: OutputFile, errors: ErrorSums) -> None:
        """Send a complete file, if it is one that goes ahead of the others."""
        publication = self._publication
        if publication and publication.takes(file) and file.name not in publication.pushed:
            push, path = publication.push, self._folder / file.name
            self._sending[self._pool.submit(push, file.name, path, errors, self._advance)] = file

    def collect(self) -> list[tuple[OutputFile, int]]:
        """See what has arrived since, and how many bytes of the disk that frees."""
        arrived = []
        pushed = self._publication.pushed if self._publication else {}
        for future, file in [*self._sending.items()]:
            # One may have arrived at the moment at which the work was to end.
            if future.done() and file.name in pushed:
                del self._sending[future]
                if not self._keeps:
                    (self._folder / file.name).unlink()
                arrived.append((file, 0 if self._keeps else file.size))
        return arrived

    def check(self) -> None:
        """Raise what sending a file raised."""
        for future in self._sending:
            if future.done():
                future.result()

    def stop(self) -> None:
        """Send no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def finish(
    publication: Publishing,
    layout: Layout,
    folder: Path,
    advance: Advance,
    then: Callable[[], None],
) -> str:
    """Publish what was sent, and all other files; then call `then`; returns the commit."""
    others = {file.name: folder / file.name for file in layout.all_files if not file.is_shard}
    return publication.finish(others, advance, then)
