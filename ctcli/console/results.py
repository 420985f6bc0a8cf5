"""What commands have to say, before a terminal or a program reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class ResultSection:
    """Lines under a heading.

    Attributes:
        heading: one line.
        lines: cells, aligned by column; the last one of a line may be long.
        whole: show them all, however many there are.
        is_essential: show them even to who wants to see as little as possible, without the heading.
    """

    heading: str
    lines: Sequence[tuple[str, ...]]
    whole: bool = False
    is_essential: bool = False


@dataclass(frozen=True)
class Result:
    """What a command has to say when it is done.

    Attributes:
        title: one line.
        rows: label and value, for people.
        items: further lines, for people; a long list is cut.
        data: the same in full, for programs.
        sections: more lines for people, each list under its heading.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    items: Sequence[str]
    data: Mapping[str, Any]
    sections: Sequence[ResultSection] = ()


class Report(Protocol):
    """What a rewrite says of itself."""

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> Report:
        """The same with what its nodes measured, by module."""

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""

    def items(self) -> list[str]:
        """Further lines, for people."""

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
