"""The output files of a run while they are written, by any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from ctcli.errors import os_errors_of
from ctcli.storage.layout import OutputFile, sources_of
from ctcli.storage.local import mode_of
from ctcli.storage.transfer import write_bytes
from ctcli.storage.writer import PartialDirectory


class OutputFiles:
    """The files that jobs write to, each open from its first byte to its last.

    Args:
        files: by name.
        partial: where they grow.
        begun: those of which an earlier run wrote parts.
        mode: who may do what with a file that takes no bytes from the source.
    """

    def __init__(
        self,
        files: Mapping[str, OutputFile],
        partial: PartialDirectory,
        begun: Collection[str],
        mode: int = 0o666,
    ) -> None:
        self._mode = mode
        self._files = files
        self._partial = partial
        self._begun = begun
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def descriptor(self, name: str) -> int:
        """A file's descriptor; creates it, with the bytes known beforehand, when first asked."""
        with self._lock:
            if name not in self._descriptors:
                self._descriptors[name] = self._open(self._files[name])
            return self._descriptors[name]

    def link(self, name: str, source: Path) -> bool:
        """Make a file a link to one of the source; False where that cannot be done."""
        return self._partial.link(name, source)

    def close(self, name: str) -> None:
        """Close a complete file; with fsync, once it is on the disk."""
        with self._lock:
            descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            try:
                self._partial.sync(name, descriptor)
            finally:
                os.close(descriptor)

    def abandon(self) -> None:
        """Close all files as they are."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _open(self, file: OutputFile) -> int:
        if file.name in self._begun:
            return self._partial.reopen(file.name)
        sources = sources_of([file])
        mode = mode_of(sources) if sources else self._mode
        descriptor = self._partial.create(file.name, file.size, mode)
        with os_errors_of(file.name, "writing"):
            write_bytes(descriptor, 0, file.head)
            for part in file.known:
                write_bytes(descriptor, part.offset, part.content)
        return descriptor
