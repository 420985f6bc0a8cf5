"""The most that lay in a folder while `ctcli` worked there, counted by the process itself.

What lies there grows until something is deleted or renamed. So the process looks right before each
such call, while no other thread can make one: no moment is missed, and none is seen that never was.
"""

from __future__ import annotations

import os
import shutil  # looks at the functions of `os` once, when it is imported
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from tests.helpers.processes import HANG_SECONDS, ctcli_after, environment

_SHRINKS = ("unlink", "remove", "rename", "replace")


class Watch:
    """The most bytes that lay below a folder at once, and the most source shards.

    Args:
        folder: the one to be watched.
        log: a file elsewhere, where processes note what they see.
        after_clean_up: look only once a run has done away with what others left.
    """

    def __init__(self, folder: Path, log: Path, *, after_clean_up: bool = False) -> None:
        self._folder = folder
        self._log = log
        self._after_clean_up = after_clean_up

    def command(self, *arguments: str | Path) -> list[str]:
        """The command of a `ctcli` that is watched."""
        given = f"{str(self._folder)!r}, {str(self._log)!r}, {self._after_clean_up}"
        return ctcli_after(
            f"from tests.helpers import watching; watching.watch({given})", *arguments
        )

    def run(
        self, *arguments: str | Path, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a `ctcli` that is watched."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
            env=environment(env),
        )

    @property
    def bytes(self) -> int:
        """The most bytes that were seen."""
        return max(nbytes for nbytes, _ in self._seen)

    @property
    def shards(self) -> int:
        """The most source shards that were seen, whole or not."""
        return max(shards for _, shards in self._seen)

    @property
    def _seen(self) -> list[tuple[int, int]]:
        lines = self._log.read_text().splitlines()
        return [(int(nbytes), int(shards)) for nbytes, shards in map(str.split, lines)]


def watch(folder: str, log: str, after_clean_up: bool) -> None:
    """Note in a file how much lies in a folder, whenever this process is about to shrink it."""
    assert shutil.rmtree.avoids_symlink_attacks
    lock, begun = threading.Lock(), threading.Event()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def look() -> None:
        if begun.is_set():
            shards = sum(".safetensors" in file.name for file in _files(Path(folder, "source")))
            os.write(descriptor, b"%d %d\n" % (_bytes(Path(folder)), shards))

    for name in _SHRINKS:
        setattr(os, name, _before(getattr(os, name), look, lock))
    if after_clean_up:
        from ctcli.engine.supply import Supply

        supply: Any = Supply
        supply.fetch = _before(Supply.fetch, begun.set, nullcontext())
    else:
        begun.set()


def _before(
    real: Callable[..., Any], look: Callable[[], None], lock: AbstractContextManager[object]
) -> Callable[..., Any]:
    @wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        with lock:
            look()
            return real(*args, **kwargs)

    return call


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def _bytes(folder: Path) -> int:
    total = 0
    for file in _files(folder):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
