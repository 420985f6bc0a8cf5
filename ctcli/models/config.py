"""What config.json says of a model, whatever the types of its values are.

A value of a wrong type counts as absent, unless a command cannot do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctcli.errors import CtcliError

_LARGEST = 2**31  # of a size; more is no model's
_HINT = "Correct the file, or fetch it again: it describes the model."


@dataclass(frozen=True)
class Section:
    """A JSON object whose values are read with the type that they have to have.

    What is absent or null is None; a value of another type is one line that names key and value.
    Keys that nobody asks for are not looked at.

    Attributes:
        name: of the file, and of the object in it: `config.json`, `config.json: text_config`.
        values: the object.
        problems: takes the lines; None: the first one is raised.
    """

    name: str
    values: Mapping[str, Any]
    problems: list[str] | None = field(default=None, compare=False)

    def size(self, key: str) -> int | None:
        """A positive whole number below 2**31."""
        found: int | None = self._read(
            key, lambda v: type(v) is int and 0 < v < _LARGEST, "a positive number"
        )
        return found

    def needed_size(self, key: str) -> int:
        """A size that the object has to give; 1 where it does not, and that is noted."""
        if self.values.get(key) is None:
            self._note(f"{self.name}: {key} is missing.")
        return self.size(key) or 1

    def whole(self, key: str) -> int | None:
        """A whole number of 64 bits."""
        found: int | None = self._read(
            key, lambda v: type(v) is int and abs(v) < 2**63, "a whole number"
        )
        return found

    def number(self, key: str) -> float | None:
        """A positive finite number."""
        found = self._read(
            key, lambda v: type(v) in (int, float) and 0 < v < 2.0**127, "a positive number"
        )
        return None if found is None else float(found)

    def flag(self, key: str) -> bool | None:
        """True or false."""
        found: bool | None = self._read(key, lambda v: isinstance(v, bool), "true or false")
        return found

    def text(self, key: str) -> str | None:
        """A string."""
        found: str | None = self._read(key, lambda v: isinstance(v, str), "a text")
        return found

    def texts(self, key: str) -> list[str] | None:
        """A list of strings."""
        found: list[str] | None = self._read(
            key,
            lambda v: isinstance(v, list) and all(isinstance(each, str) for each in v),
            "a list of texts",
        )
        return found

    def section(self, key: str) -> Section:
        """An object; an empty one where there is none."""
        found = self._read(key, lambda v: isinstance(v, Mapping), "an object")
        return Section(f"{self.name}: {key}", found or {}, self.problems)

    def sections(self, key: str) -> dict[str, Section]:
        """The objects in an object, by name."""
        outer = self.section(key)
        return {name: outer.section(name) for name in outer.values}

    def _read(self, key: str, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.values.get(key)
        if value is None or fits(value):
            return value
        self._note(f"{self.name}: {key} is {shown(value)}, and not {what}.")
        return None

    def _note(self, problem: str) -> None:
        if self.problems is None:
            raise CtcliError(problem, _HINT)
        self.problems.append(problem)


def table(value: Any) -> Mapping[str, Any]:
    """A JSON object; empty if the value is none."""
    return value if isinstance(value, Mapping) else {}


def shown(value: Any) -> str:
    """A value for a message, cut off if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model."""
    return config["text_config"] if is_nested(config) else config


def is_nested(config: Mapping[str, Any]) -> bool:
    """Whether that is a part of its own, as in models of several modalities."""
    return isinstance(config.get("text_config"), Mapping)


def size_of(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these sizes that is given as a positive whole number."""
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and value > 0), None)


def classes(config: Mapping[str, Any]) -> list[str]:
    """The names of the model's classes; empty if there are none."""
    for part in (text_config(config), config):
        found = part.get("architectures")
        if isinstance(found, list) and found:
            return [str(name) for name in found]
    return []


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """What config.json says of the head being the embedding; None: nothing."""
    for part in (config, text_config(config)):
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    return None


def quantizations(config: Mapping[str, Any]) -> list[Any]:
    """All that config.json says of quantization, the more telling first; of any type."""
    parts = [config, text_config(config)] if is_nested(config) else [config]
    keys = ("quantization_config", "compression_config")
    return [part[key] for part in parts for key in keys if part.get(key) is not None]
