"""An output file while several jobs write it."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ctcli.errors import os_errors_of
from ctcli.lazy.tensors import Derivation
from ctcli.storage.journal import Part, Place
from ctcli.storage.layout import OutputFile
from ctcli.storage.transfer import write_bytes
from ctcli.storage.writer import PartialDirectory


def combine_measures(derivation: Derivation, measures: Iterable[Sequence[float]]) -> list[float]:
    """What was measured on several blocks of rows of a derivation, as one."""
    combine = max if derivation.measures == "max" else sum
    return [combine(column) for column in zip(*measures, strict=True)]


class OpenOutput:
    """An output file while its jobs run."""

    def __init__(
        self, file: OutputFile, jobs: int, partial: PartialDirectory, parts: Sequence[Part]
    ) -> None:
        self.file = file
        self._is_begun = bool(parts)
        self._partial = partial
        self._lock = threading.Lock()
        self._left = jobs
        self._descriptor: int | None = None
        self._measures: dict[str, dict[Place, Sequence[float]]] = defaultdict(dict)
        for part in parts:
            self.measure(part)

    def descriptor(self) -> int:
        """The file's descriptor; creates it, with the bytes known beforehand, when first asked."""
        with self._lock:
            return self._open()

    def touch(self, start: int, nbytes: int) -> bool:
        """Have memory pages made for some bytes of a file that is still written, where one can."""
        from ctcli.storage.pages import touch_pages

        with self._lock:
            return self._left > 0 and touch_pages(self._open(), start, nbytes)

    def measure(self, part: Part) -> None:
        """Keep what was measured on a part."""
        if part.module:
            with self._lock:
                self._measures[part.module][part.place] = part.measured

    def errors(self) -> dict[str, list[float]]:
        """What was measured of each module: by rows in order, so that no race shows in a sum."""
        every = (part.tensor.derivation for part in self.file.computed)
        derivations = {each.name: each for each in every if not each.only_rounds}
        return {
            module: combine_measures(derivations[module], [found[place] for place in sorted(found)])
            for module, found in self._measures.items()
        }

    def job_done(self, part: Part | None) -> None:
        """Count a job, and note the part that it wrote; the last one completes the file."""
        with self._lock:
            self._left -= 1
            if self._left:
                if part and part.nbytes:  # without bytes, another job may have the same place
                    self._partial.note_part(part)
            elif self._descriptor is not None:
                self._partial.finish(self.file.name, self._descriptor, self.errors())
                self._close()

    @property
    def is_complete(self) -> bool:
        """Whether all its jobs are done."""
        return self._left == 0

    def abandon(self) -> None:
        """Close the file if it is still incomplete."""
        with self._lock:
            self._left = 0
            self._close()

    def _open(self) -> int:
        if self._descriptor is None and self._is_begun:
            self._descriptor = self._partial.reopen(self.file.name)
        elif self._descriptor is None:
            self._descriptor = self._partial.create(self.file.name, self.file.size)
            with os_errors_of(self.file.name, "writing"):
                write_bytes(self._descriptor, 0, self.file.head)
                for part in self.file.known:
                    write_bytes(self._descriptor, part.offset, part.content)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
