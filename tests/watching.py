"""What lies in a folder while something works there."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path


def bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


class Watch:
    """The most bytes that lay below a folder at once, and the most source shards."""

    def __init__(self, folder: Path) -> None:
        self.bytes = self.shards = 0
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, bytes_below(self._folder))
            found = list(self._folder.glob("source/*/*.safetensors*"))
            self.shards = max(self.shards, len(found))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
