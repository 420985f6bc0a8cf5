"""The engine: runs a plan on threads, within a byte budget, and publishes the result."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ctcli.errors import CtcliError, os_errors_of
from ctcli.plan import Plan, Settings
from ctcli.storage.layout import Copy, OutputFile
from ctcli.storage.transfer import BUFFER_BYTES, copy_bytes, write_bytes
from ctcli.storage.writer import PartialDirectory, open_partial
from ctcli.units import Advance

# Files are copied by several threads at once, in pieces of at most this many bytes.
_PIECE_BYTES = 256 * 1024 * 1024


def execute(plan: Plan, advance: Advance) -> None:
    """Write the plan's files and publish DST.

    Args:
        plan: what to write.
        advance: told of every byte downloaded and written, from any thread.

    Raises:
        CtcliError: reading or writing failed; DST is as it was, and the plan can be continued.
    """
    settings, layout = plan.settings, plan.layout
    with open_partial(
        plan.destination, layout.key, plan.leftover.complete, settings.fsync
    ) as partial:
        for files in (layout.files, layout.closing):
            _Run(settings, partial, advance).write(plan.pending(files))
        partial.publish(settings.overwrite)


class _Output:
    """An output file while its pieces are being written."""

    def __init__(self, file: OutputFile, pieces: int, partial: PartialDirectory) -> None:
        self.file = file
        self._partial = partial
        self._lock = threading.Lock()
        self._left = pieces
        self._descriptor: int | None = None

    def descriptor(self) -> int:
        """The file's descriptor; creates it, with the bytes known beforehand, when first asked."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = self._partial.create(self.file.name, self.file.size)
                with os_errors_of(self.file.name, "writing"):
                    write_bytes(self._descriptor, 0, self.file.head)
            return self._descriptor

    def piece_done(self) -> None:
        """Count a piece; the last one completes the file."""
        with self._lock:
            self._left -= 1
            if self._left == 0 and self._descriptor is not None:
                self._partial.finish(self.file.name, self._descriptor)
                self._close()

    def abandon(self) -> None:
        """Close the file if it is still incomplete."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class _Piece:
    """One job: some bytes of an output file, or all of a file whose bytes are known."""

    output: _Output
    copy: Copy | None
    memory: int = BUFFER_BYTES


class _Cancelled(BaseException):
    """Ends a worker after another one failed or a signal came."""


class _Run:
    """One pass of the thread pool over the pieces of some files."""

    def __init__(self, settings: Settings, partial: PartialDirectory, advance: Advance) -> None:
        self._settings = settings
        self._partial = partial
        self._report = advance
        self._stop = threading.Event()

    def write(self, files: Iterable[OutputFile]) -> None:
        """Write `files` completely, or raise the first error."""
        waiting = deque(piece for file in files for piece in self._pieces(file))
        outputs = {piece.output for piece in waiting}
        running: dict[Future[None], _Piece] = {}
        with ThreadPoolExecutor(self._settings.workers) as pool:
            try:
                while waiting or running:
                    while waiting and self._admits(waiting[0], running.values()):
                        piece = waiting.popleft()
                        running[pool.submit(self._write_piece, piece)] = piece
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                        future.result()
            finally:
                self._stop.set()
                wait(running)
                for output in outputs:
                    output.abandon()

    def _admits(self, piece: _Piece, running: Collection[_Piece]) -> bool:
        memory = sum(other.memory for other in running) + piece.memory
        return len(running) < self._settings.workers and memory <= self._settings.max_memory

    def _pieces(self, file: OutputFile) -> list[_Piece]:
        if self._settings.link and file.verbatim:
            copies: list[Copy | None] = list(file.copies)
        else:
            copies = [part for copy in file.copies for part in copy.split(_PIECE_BYTES)]
        output = _Output(file, len(copies) or 1, self._partial)
        return [_Piece(output, copy) for copy in copies or [None]]

    def _write_piece(self, piece: _Piece) -> None:
        file, copy = piece.output.file, piece.copy
        source = copy.source.fetch(self._advance) if copy else None
        linkable = source if self._settings.link and file.verbatim else None
        if linkable and self._partial.link(file.name, linkable):
            self._advance(file.size)
            return
        target = piece.output.descriptor()
        if copy and source:
            self._copy(copy, source, file.name, target)
        piece.output.piece_done()

    def _copy(self, copy: Copy, path: Path, name: str, target: int) -> None:
        with os_errors_of(copy.source.name, "reading"):
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with os_errors_of(name, "writing"):
                copy_bytes(source, copy.start, target, copy.offset, copy.nbytes, self._advance)
        except EOFError as error:
            raise CtcliError(
                f"{copy.source.name}: it became shorter while it was being read.",
                "Leave SRC alone while ctcli runs, then run the same command again.",
            ) from error
        finally:
            os.close(source)

    def _advance(self, nbytes: int) -> None:
        if self._stop.is_set():
            raise _Cancelled
        self._report(nbytes)
