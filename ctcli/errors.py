"""Every expected error: what is wrong, one line a problem, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CtcliError(Exception):
    """A job that cannot be done, for a reason a user can act on.

    Args:
        problems: what is wrong, one line each; every line names its file or tensor.
        hint: one line that says what to do next.
    """

    def __init__(self, problems: str | Sequence[str], hint: str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.hint = hint
        super().__init__("\n".join((*self.problems, hint)))


class Stopped(BaseException):
    """Raised where a signal asks the process to end; carries the shell's exit status for it.

    Args:
        signal_number: the signal.
        message: how far the run had come.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


@contextmanager
def problems_of(place: str) -> Iterator[None]:
    """Put `place` before every problem of a `CtcliError` inside the block."""
    try:
        yield
    except CtcliError as error:
        problems = [f"{place}: {problem}" for problem in error.problems]
        raise CtcliError(problems, error.hint) from error


@contextmanager
def os_errors_of(name: str, doing: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `CtcliError` about the file `name`."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise CtcliError(
                f"{name}: the disk (or a quota or file-size limit) is full: {error.strerror}.",
                "Free some space, then run the same command again: it continues.",
            ) from error
        raise CtcliError(
            f"{name}: {doing} failed: {error.strerror or error}.",
            "Check the path, its permissions and the disk; the same command can be run again.",
        ) from error
