"""What a worker of a cluster is told, and what it answers: plain data, without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctcli.errors import CtcliError
from ctcli.redaction import redact


@dataclass(frozen=True)
class Work:
    """The plan that all workers make for themselves, as data.

    Attributes:
        key: of the plan; a worker that comes to another one has another SRC.
        source: SRC.
        revision: of a hub SRC.
        destination: DST, absolute; on a hub, the name that it has here.
        tables: what is done to SRC, as steps of a recipe.
        settings: how, as `engine.plan.Settings` has it; 0 workers: as many as the worker's threads.
        stream: whether weights files of a hub SRC are streamed.
        repo: the repository of a hub that DST is; None: it is on a disk that all see.
        branch: of it, to publish on.
        include: further files to publish.
    """

    key: str
    source: str
    revision: str | None
    destination: str
    tables: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    stream: bool = False
    repo: str | None = None
    branch: str = ""
    include: Sequence[str] = ()


@dataclass(frozen=True)
class Failure:
    """Why a worker could not do something.

    Attributes:
        problems: as of `CtcliError`.
        hint: likewise.
        is_local: whether it may be that machine's, so that another one can do it.
    """

    problems: tuple[str, ...]
    hint: str
    is_local: bool = False

    @classmethod
    def of(cls, error: CtcliError) -> Failure:
        """A failure by an expected error, told without secrets."""
        problems = tuple(redact(problem) for problem in error.problems)
        return cls(problems, redact(error.hint), isinstance(error.__cause__, OSError))
