"""What lies in a folder while something works there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder from which others delete; `Path.glob` does not bear that."""
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def bytes_below(folder: Path) -> int:
    total = 0
    for file in files_below(folder):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
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
            found = files_below(self._folder / "source")
            shards = sum(".safetensors" in file.name for file in found)
            self.shards = max(self.shards, shards)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
