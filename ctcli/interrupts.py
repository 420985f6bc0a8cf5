"""What SIGINT and SIGTERM do to a run, from its first moment to its last.

A handler that raises can only be right about what has happened if it knows how far the run is. So
the handler is an object, and whoever passes a point of no return tells it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ctcli.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 2  # signals; wrappers that pass one on may deliver it twice
_BEFORE_ANYTHING = b"warning: interrupted; nothing was changed.\n"
BEFORE_PUBLISHING = "interrupted; DST is as it was. The same command continues."
WHILE_READING = "interrupted."


class Interrupts:
    """Handler of both signals: the first one ends the run, a second would only hinder that.

    A third ends the process where it stands, should the way out take too long. While the command
    is being loaded, the first ends the process there and then: an exception that is raised inside
    an import may be caught, or leave half a module behind. Once the output is published, the run
    is done, and a signal changes nothing any more.
    """

    def __init__(self) -> None:
        self._signals = 0
        self._is_loading = True
        self._is_done = False
        self.message = BEFORE_PUBLISHING

    def install(self) -> None:
        """Handle the signals from now on."""
        for number in _SIGNALS:
            signal.signal(number, self)

    def loaded(self) -> None:
        """The command is loaded: signals raise from now on."""
        self._is_loading = False

    def done(self) -> None:
        """The output is published, or will be within one system call."""
        self._is_done = True

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a signal.

        Raises:
            Stopped: at the first signal of a run under way.
        """
        self._signals += 1
        exit_code = 0 if self._is_done else 128 + signal_number
        if self._is_loading:
            os.write(2, _BEFORE_ANYTHING)
            os._exit(exit_code)
        if self._signals > _PATIENCE:
            os._exit(exit_code)
        if self._signals == 1 and not self._is_done:
            raise Stopped(signal_number, self.message)


def _handler() -> Interrupts | None:
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, Interrupts) else None


def run_is_done() -> None:
    """Say that what comes now is not to be interrupted: the output is about to be published."""
    if handler := _handler():
        handler.done()


@contextmanager
def interrupted_means(message: str) -> Iterator[None]:
    """Within the block, a signal ends the run with this message instead of the usual one."""
    handler = _handler()
    if handler:
        handler.message = message
    yield
    if handler:
        handler.message = BEFORE_PUBLISHING
