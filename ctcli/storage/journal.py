"""The journal of a run: which files are complete, and which parts of the others are written.

Lines of JSON: the layout's key, then `[file, errors]` for a complete file, and for a part of one
that is not its file, place, size and what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# What its node measured, for every module that was computed.
ErrorSums = Mapping[str, Sequence[float]]
# Tells a job from the others that write to a file: a node's key and its first row or column; or no
# key, and the offset of bytes that are taken over.
JobPlace = tuple[str, int]


class JobRecord(NamedTuple):
    """What one job wrote to a file.

    Attributes:
        file: its name.
        place: of the job.
        nbytes: bytes written.
        measured: what its node measured.
    """

    file: str
    place: JobPlace
    nbytes: int
    measured: Sequence[float] = ()


@dataclass(frozen=True)
class Journal:
    """What has been noted: complete files, and parts of all."""

    complete: Mapping[str, ErrorSums]
    parts: Mapping[tuple[str, JobPlace], JobRecord]

    def lines(self, key: str) -> Iterator[str]:
        """It as text."""
        yield line_of(key)
        yield from (line_of(entry) for entry in self.complete.items())
        yield from (line_of(part) for part in self.parts.values())

    def contains(self, other: Journal, elsewhere: Collection[str] = ()) -> bool:
        """Whether all that `other` holds is noted here, or is elsewhere."""
        return (
            other.complete.keys() - elsewhere <= self.complete.keys()
            and other.parts.keys() <= self.parts.keys()
        )


def line_of(entry: Any) -> str:
    """A line of the journal."""
    return f"{json.dumps(entry)}\n"


def read_journal(path: Path, key: str) -> Journal:
    """Read a journal; an empty one if it is another key's, damaged at its start, or absent."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line that was being written when the process died has no end.
        first, *entries = [json.loads(line) for line in lines if line.endswith("\n")]
        if first == key:
            return _parse(entries)
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return Journal({}, {})


def is_foreign(path: Path, key: str) -> bool:
    """Whether a journal is there that is not of this key."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, ValueError):
        return False
    return bool(first) and first != line_of(key)


def _parse(entries: Iterable[Sequence[Any]]) -> Journal:
    complete: dict[str, ErrorSums] = {}
    parts: dict[tuple[str, JobPlace], JobRecord] = {}
    for file, *rest in entries:
        if len(rest) == 1:
            complete[file] = rest[0]
        else:
            (key, start), *others = rest
            parts[file, (key, start)] = JobRecord(file, (key, start), *others)
    return Journal(complete, parts)
