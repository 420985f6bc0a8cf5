"""The process: signals, settings, and exit codes; the one place where errors are caught."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # What is imported below takes long enough for a user to change their mind.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from contextlib import suppress
from io import TextIOWrapper

from ctcli.errors import CtcliError, Stopped
from ctcli.interrupts import Interrupts

TYPE_CHECKING = False  # as typing's, which takes a while to import
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Run the command line, and end the process with the exit code that it has come to."""
    _write_whatever_comes()
    try:
        interrupts = Interrupts()
        interrupts.install()
        _run(interrupts)
    except Stopped as stopped:
        from ctcli.console import Terminal

        Terminal().warn(str(stopped))
        _leave(stopped.exit_code)


def _run(interrupts: Interrupts) -> NoReturn:
    try:
        # Imported only now: that takes long enough for a user to change their mind.
        from ctcli.cli import main as run_command_line
        from ctcli.ops.runtime import keep_all_objects, limit_blas, reuse_memory

        reuse_memory()
        limit_blas()
        keep_all_objects()
        interrupts.loaded()
        status = run_command_line()
    except SystemExit as done:
        _leave(int(done.code or 0))
    except CtcliError as error:
        from ctcli.console import Terminal

        Terminal().fail(error)
        _leave(error.exit_code)
    _leave(status)


def _write_whatever_comes() -> None:
    """Show characters that the locale does not have as escapes, instead of ending at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(exit_code: int) -> NoReturn:
    """End at once: threads may still wait for a hub, and taking torch apart takes a while."""
    for stream in (sys.stdout, sys.stderr):
        if stream:  # the shell may have closed it
            with suppress(OSError):
                stream.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    main()
