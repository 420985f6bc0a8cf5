"""The process: signals, settings, and exit codes; the one place where errors are caught."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from ctcli.errors import CtcliError, Stopped

_PATIENCE = 2  # signals; wrappers that pass one on may deliver it twice


def main() -> None:
    """Run the command line, and end the process with the exit code that it has come to."""
    try:
        stop = _Stop()
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        _run()
    except Stopped as stopped:
        from ctcli.console import Terminal

        Terminal().warn(str(stopped))
        _leave(stopped.exit_code)


def _run() -> NoReturn:
    try:
        # Imported only now: that takes long enough for a user to change their mind.
        from ctcli.cli import app
        from ctcli.ops.runtime import keep_all_objects, limit_blas, reuse_memory

        reuse_memory()
        limit_blas()
        keep_all_objects()
        app()
    except SystemExit as done:
        _leave(int(done.code or 0))
    except CtcliError as error:
        from ctcli.console import Terminal

        Terminal().fail(error)
        _leave(1)
    _leave(0)


class _Stop:
    """What signals do: the first ends the run, a second would only hinder that.

    A third ends the process where it stands, should the way out take too long.
    """

    def __init__(self) -> None:
        self._signals = 0

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signals += 1
        if self._signals == 1:
            raise Stopped(signal_number)
        if self._signals > _PATIENCE:
            os._exit(Stopped(signal_number).exit_code)


def _leave(exit_code: int) -> NoReturn:
    """End at once: threads may still wait for a hub, and taking torch apart takes a while."""
    for stream in (sys.stdout, sys.stderr):
        if stream:  # the shell may have closed it
            with suppress(OSError):
                stream.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    main()
