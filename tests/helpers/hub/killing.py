"""Processes that are killed when they ask the hub for something, before it answers."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.helpers.hub.faults import Request
from tests.helpers.hub.running import Hub
from tests.helpers.processes import HANG_SECONDS, environment


def run_until(
    hub: Hub,
    matches: Callable[[Request], bool],
    command: Sequence[str],
    *,
    nth: int = 1,
    env: Mapping[str, str],
    cwd: Path | None = None,
) -> int:
    """Run a process until the n-th of its requests that match arrives; the hub then goes on.

    Returns:
        Its exit status: -SIGKILL, unless it ended before.
    """
    begun = threading.Event()

    def kill() -> None:
        begun.wait(HANG_SECONDS)
        process.kill()
        process.wait(HANG_SECONDS)

    with hub.on(matches, kill, nth=nth):
        process = subprocess.Popen(command, env=environment(env), cwd=cwd)
        begun.set()
        status = process.wait(HANG_SECONDS)
        hub.settle()
        return status
