"""The process: signals, settings, and exit codes; the one place where errors are caught."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from ctcli.errors import CtcliError, Stopped


def main() -> None:
    """Run the command line; the only place where expected errors are caught."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        # Imported only now: that takes long enough for a user to change their mind.
        from ctcli.cli import app
        from ctcli.ops.runtime import reuse_memory

        reuse_memory()
        app()
    except SystemExit as done:
        _leave(int(done.code or 0))
    except CtcliError as error:
        from ctcli.console import Terminal

        Terminal().fail(error)
        _leave(1)
    except Stopped as stopped:
        # A second signal would only hinder the way out.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        from ctcli.console import Terminal

        Terminal().warn(str(stopped))
        _leave(stopped.exit_code)


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise Stopped(signal_number)


def _leave(exit_code: int) -> NoReturn:
    """End at once: threads may still wait for a hub, and taking torch apart takes a while."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
