"""Options of commands, each declared once: as a field of the command's dataclass.

The dataclass's docstring is the command's help, its fields are the keys of the command's step in a
recipe, and an instance is what the library's function takes. A field's type is bool, int, float,
str, Path, a Literal, or a tuple of these, with or without None.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ctcli.units import parse_bytes

_METAVARS = {Path: "FILE", int: "N"}
_WORDS = {"None": "none", "False": "off", "True": "on"}
Value = TypeVar("Value")


class OptionError(Exception):
    """An option's value is wrong, or options do not go together; says what to give."""


@dataclass(frozen=True)
class Option:
    """An option of a dataclass.

    Attributes:
        name: the field's.
        kind: the field's type without None; int for a Literal of whole numbers.
        default: the field's; `dataclasses.MISSING` where the option has to be given.
        help: what it is for.
        words: the default in words.
        metavar: what stands for the value in help; None: the choices, or nothing for a flag.
        parse: makes the value of a text, or raises `OptionError`; None: the type says how.
        least: of a number.
        most: of a number.
        flags: the words of the command line; "": `--` and the name.
        panel: the part of the help that it stands in.
        is_argument: it has a place on the command line instead of a word.
        is_common: help shows it behind the command's own options.
        recorded: whether a run's recipe tells it.
    """

    name: str
    kind: Any
    default: Any
    help: str
    words: str
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    least: float | None = None
    most: float | None = None
    flags: str = ""
    panel: str | None = None
    is_argument: bool = False
    is_common: bool = False
    recorded: Literal["always", "unless default", "never"] = "always"


def option(default: Value, help: str, words: str | None = None, **others: Any) -> Value:  # noqa: A002
    """A field that is an option.

    Args:
        default: the value where it is not given.
        help: what it is for.
        words: what help calls the default, if not by its value.
        others: further attributes of `Option`.
    """
    shown = words or _WORDS.get(str(default), str(default))
    return field(default=default, metadata={"help": help, "words": shown, **others})


def argument(metavar: str, help: str, **others: Any) -> Any:  # noqa: A002
    """A field that has a place on the command line, and has to be given."""
    return field(
        metadata={"help": help, "words": "", "metavar": metavar, "is_argument": True, **others}
    )


def options_of(declared: Any) -> tuple[Option, ...]:
    """The options of a dataclass, in the order of its fields."""
    hints = get_type_hints(declared)
    return tuple(
        Option(each.name, default=each.default, **_typed(hints[each.name], **each.metadata))
        for each in fields(declared)
    )


def _typed(kind: Any, **others: Any) -> dict[str, Any]:
    """What an option's type says, beside what is said of it."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not types.NoneType)
    found = {"kind": kind, "metavar": _METAVARS.get(kind)}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and isinstance(choices[0], int):
        metavar = "|".join(map(str, choices))
        found = {"kind": int, "metavar": metavar, "least": min(choices), "most": max(choices)}
    return {**found, **others}


def revision() -> str | None:
    """The option of commands that open a checkpoint of a hub."""
    return option(None, "Branch, tag or commit of a hub SRC.", "main", metavar="REV")


def threads() -> int | None:
    """The option of commands that work on several cores."""
    return option(None, "Threads.", "the cores", least=1)


def size(default: Value, help: str, words: str, **others: Any) -> Value:  # noqa: A002
    """An option that is a number of bytes, as people write them."""
    return option(default, help, words, metavar="SIZE", parse=_parse_size, **others)


def memory() -> int:
    """The option of commands that compute within a budget."""
    return size(
        parse_bytes("2GB"), "Bytes that all jobs under way may hold together (500MB, 2GiB).", "2GB"
    )


def _parse_size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise OptionError(str(error)) from error


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # fewer than os.cpu_count() in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
