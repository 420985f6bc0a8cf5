"""What is wrong with the files of a checkpoint: where commands stop, and `verify` goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ctcli.errors import CtcliError

ProblemKind = Literal["file", "index"]


@dataclass(frozen=True)
class Problem:
    """Files, headers and index that do not fit together.

    Attributes:
        kind: what was looked at.
        where: the file or tensor.
        message: what is wrong there, as `verify` says it: the rest of a sentence that begins with
            `where:`.
        line: what other commands say; empty: it does not concern them.
        hint: what to do next.
        is_warning: whether they go on all the same.
    """

    kind: ProblemKind
    where: str
    message: str
    line: str = ""
    hint: str = ""
    is_warning: bool = False


# Is told of problems as they are found; whoever reads goes on unless it raises.
Sink = Callable[[Sequence[Problem]], None]


def problems_of(error: CtcliError, kind: ProblemKind, where: str) -> list[Problem]:
    """The problems of an error."""
    return [
        Problem(kind, where, line.removeprefix(f"{where}: "), line, error.hint)
        for line in error.problems
    ]


class Refusing:
    """A sink that stops at problems, and keeps warnings.

    Attributes:
        warnings: a line each.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __call__(self, problems: Sequence[Problem]) -> None:
        """Look at problems.

        Raises:
            CtcliError: some are no warnings; lists them all.
        """
        told = [problem for problem in problems if problem.line]
        if serious := [problem for problem in told if not problem.is_warning]:
            raise CtcliError([problem.line for problem in serious], serious[0].hint)
        self.warnings += [problem.line for problem in told]
