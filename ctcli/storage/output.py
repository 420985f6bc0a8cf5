"""An output file while several jobs write it."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ctcli.errors import os_errors_of
from ctcli.storage.layout import OutputFile
from ctcli.storage.transfer import write_bytes
from ctcli.storage.writer import PartialDirectory
from ctcli.tensors import Derivation


def combine_measures(derivation: Derivation, measures: Iterable[Sequence[float]]) -> list[float]:
    """What was measured on several blocks of rows of a derivation, as one."""
    combine = max if derivation.measures == "max" else sum
    return [combine(column) for column in zip(*measures, strict=True)]


class OpenOutput:
    """An output file while its jobs run."""

    def __init__(self, file: OutputFile, jobs: int, partial: PartialDirectory) -> None:
        self.file = file
        self._partial = partial
        self._lock = threading.Lock()
        self._left = jobs
        self._descriptor: int | None = None
        self._measures: dict[Derivation, dict[int, list[float]]] = defaultdict(dict)

    def descriptor(self) -> int:
        """The file's descriptor; creates it, with the bytes known beforehand, when first asked."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = self._partial.create(self.file.name, self.file.size)
                with os_errors_of(self.file.name, "writing"):
                    write_bytes(self._descriptor, 0, self.file.head)
                    for part in self.file.known:
                        write_bytes(self._descriptor, part.offset, part.content)
            return self._descriptor

    def note_errors(self, derivation: Derivation, row: int, measures: list[float]) -> None:
        """Keep what was measured on a derivation's rows from `row` on."""
        with self._lock:
            self._measures[derivation][row] = measures

    def errors(self) -> dict[str, list[float]]:
        """What was measured of each module: by rows in order, so that no race shows in a sum."""
        return {
            derivation.name: combine_measures(
                derivation, [measures for _, measures in sorted(rows.items())]
            )
            for derivation, rows in self._measures.items()
        }

    def job_done(self) -> None:
        """Count a job; the last one completes the file."""
        with self._lock:
            self._left -= 1
            if self._left == 0 and self._descriptor is not None:
                self._partial.finish(self.file.name, self._descriptor, self.errors())
                self._close()

    def abandon(self) -> None:
        """Close the file if it is still incomplete."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
