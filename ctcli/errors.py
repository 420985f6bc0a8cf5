"""Every expected error: what is wrong, one line a problem, and what to do next."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_ALIKE = 4  # problems that differ in numbers alone and are told as one
_NUMBER = re.compile(r"(?<=[^0-9]\.)\d+(?=\.)")  # of a name, and no decimals
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CtcliError(Exception):
    """A job that cannot be done, for a reason a user can act on.

    Attributes:
        exit_code: the process's exit status.

    Args:
        problems: what is wrong, one line each; every line names its file or tensor.
        hint: one line that says what to do next.
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str], hint: str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.hint = hint
        super().__init__("\n".join((*self.problems, hint)))


class UsageError(CtcliError):
    """A command that is not typed as it has to be, whatever the checkpoint is."""

    exit_code = 2


def grouped(problems: Iterable[str]) -> list[str]:
    """Problems with those that differ only in numbers of names (`layers.0.mlp`) as one line.

    Such a line has `*` for the number, and their count.
    """
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(_NUMBER.sub("*", problem), []).append(problem)
    told: list[str] = []
    for pattern, members in alike.items():
        many = len(members) >= _ALIKE
        told += [f"{pattern} ({len(members):,} like this)"] if many else members
    return told


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
