"""What processes that make one checkpoint together have to agree on, and where two do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctcli.checkpoint.value import StepTable

_SHOWN = 3  # files named of those that are different
HINT = (
    "Give every part the same SRC, options and version of ctcli; or choose another DST, or delete "
    "the folder in which the parts meet."
)
NO_PARTS = "Make them first, by the command of your choice with --part 1/N to --part N/N."


@dataclass(frozen=True)
class Agreement:
    """All that the output depends on, so that a difference can be named.

    Attributes:
        key: of the plan; equal only if the output is.
        version: ctcli's.
        source: name, commit and hash of the headers of SRC.
        stamps: size and stamp of each file of SRC that is read, by name.
        steps: what is done to it, with all options.
        settings: options that change how DST is made, such as `fsync`.
        parts: how many there are; 0: files are given out one by one.
        form: what DST becomes: `directory` or `file`.
        files: of each output file, in order: its size, and the part that makes it.
        command: the words of the command, without `--part`.
    """

    key: str
    version: str
    source: Mapping[str, str | None]
    stamps: Mapping[str, Sequence[Any]]
    steps: Sequence[StepTable]
    settings: Mapping[str, bool]
    parts: int
    form: str
    files: Mapping[str, Sequence[int]]
    command: Sequence[str]

    def encode(self) -> bytes:
        """It as JSON."""
        return json.dumps(asdict(self), default=str).encode()

    @classmethod
    def decode(cls, content: bytes) -> Agreement:
        """What `encode` wrote.

        Raises:
            ValueError: another version of ctcli wrote it, or it is damaged.
        """
        try:
            return cls(**json.loads(content))
        except TypeError as error:
            raise ValueError(str(error)) from error

    @property
    def sizes(self) -> dict[str, int]:
        """The length of every output file."""
        return {name: size for name, (size, _) in self.files.items()}

    def differences(self, other: Agreement) -> list[str]:
        """Where another one differs, a sentence each; none if the plans are equal."""
        found = [*self._differences(other)]
        if self.key != other.key and not found:
            return ["the output files hold something else."]
        return found

    def normalized(self) -> Agreement:
        """The same as it is read back: with lists for tuples, and texts for paths."""
        return Agreement.decode(self.encode())

    def _differences(self, other: Agreement) -> Iterator[str]:
        if self.version != other.version:
            yield f"ctcli {self.version} began it, and this is ctcli {other.version}."
        words = {"name": "name", "commit": "commit", "headers_sha256": "SHA-256 of its headers"}
        for key, what in words.items():
            there, here = self.source.get(key), other.source.get(key)
            if there != here:
                yield f"SRC: its {what} is {there} there, and {here} here."
        shared = [name for name in self.stamps if name in other.stamps]
        changed = [name for name in shared if self.stamps[name] != other.stamps[name]]
        if changed:
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            shown = ", ".join(changed[:_SHOWN]) + more
            yield f"SRC: another size or time of change of {shown}."
        yield from _changed_steps(self.steps, other.steps)
        for key in {**self.settings, **other.settings}:
            there_is, here_is = self.settings.get(key), other.settings.get(key)
            if there_is != here_is:
                yield f"--{key} is {_on(there_is)} there, and {_on(here_is)} here."
        if self.parts != other.parts:
            yield f"{self._parts} there, and {other._parts} here."

    @property
    def _parts(self) -> str:
        return f"{self.parts} parts" if self.parts else "a cluster instead of parts"


def _changed_steps(there: Sequence[StepTable], here: Sequence[StepTable]) -> Iterator[str]:
    names = [[str(step.get("use")) for step in steps] for steps in (there, here)]
    if names[0] != names[1]:
        yield f"the steps are {', '.join(names[0])} there, and {', '.join(names[1])} here."
        return
    for use, one, other in zip(names[0], there, here, strict=True):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                yield f"{use}: {key} is {_given(one, key)} there, and {_given(other, key)} here."


def _given(step: StepTable, key: str) -> str:
    return repr(step[key]) if key in step else "not given"


def _on(value: bool | None) -> str:
    return "on" if value else "off"
