"""Options of commands, each declared once: as a field of the command's dataclass.

The dataclass's docstring is the command's help, its fields are the keys of the command's step in a
recipe, and an instance is what the library's function takes. A field's type is bool, int, float,
str, Path, a Literal, or a tuple of these, with or without None.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ctcli.units import parse_bytes

# The parts of a command's help, in their order.
Panel = Literal["What", "How", "Output", "Hub", "Machine", "Messages"]
PANELS: tuple[Panel, ...] = get_args(Panel)
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
        choices: values that completion offers; others may be allowed.
        is_argument: it has a place on the command line instead of a word.
        instead: what is done with the value in place of the command; the process ends behind it.
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
    panel: Panel = "How"
    choices: tuple[str, ...] = ()
    is_argument: bool = False
    instead: Callable[[str], None] | None = None
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


def argument(metavar: str, help: str, default: Any = MISSING, **others: Any) -> Any:  # noqa: A002
    """A field that has a place on the command line, and has to be given without a default."""
    metadata = {"help": help, "words": "", "metavar": metavar, "is_argument": True, **others}
    return field(default=default, metadata=metadata)


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
    found: dict[str, Any] = {"kind": kind, "metavar": _METAVARS.get(kind)}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices:
        found |= {"metavar": "|".join(map(str, choices)), "choices": tuple(map(str, choices))}
    if choices and isinstance(choices[0], int):
        found |= {"kind": int, "least": min(choices), "most": max(choices)}
    return {**found, **others}


def parse_value(text: str, option: Option) -> Any:
    """A word of the command line as the option's type has it: of a number, or of a choice.

    Raises:
        OptionError: it cannot be one; the message says what can.
    """
    if option.kind in (int, float):
        try:
            value = option.kind(text)
        except ValueError:
            value = math.nan
        least, most = option.least, option.most
        if (
            not (-math.inf if least is None else least)
            <= value
            <= (math.inf if most is None else most)
        ):
            bounds = f" from {least}" * (least is not None) + f" to {most}" * (most is not None)
            what = "a whole number" if option.kind is int else "a number"
            raise OptionError(f"{text!r}: give {what}{bounds}.")
        return value
    if text not in option.choices:
        raise OptionError(f"{text!r}: give one of {', '.join(option.choices)}.")
    return text


def revision() -> str | None:
    """The option of commands that open a checkpoint of a hub."""
    return option(None, "Branch, tag or commit of a hub SRC.", "main", metavar="REV", panel="Hub")


def subfolder() -> str | None:
    """The option of commands that open a checkpoint in a part of a repository."""
    text = "Folder inside SRC, such as the transformer of a diffusion model."
    return option(None, text, "none", metavar="NAME", panel="Hub")


def threads() -> int | None:
    """The option of commands that work on several cores."""
    return option(None, "Threads.", "the cores", least=1, panel="Machine")


def size(default: Value, help: str, words: str, **others: Any) -> Value:  # noqa: A002
    """An option that is a number of bytes, as people write them."""
    return option(default, help, words, metavar="SIZE", parse=_parse_size, **others)


def memory() -> int:
    """The option of commands that compute within a budget."""
    return size(
        parse_bytes("2GB"),
        "Bytes that all jobs under way may hold together (500MB, 2GiB).",
        "2GB",
        panel="Machine",
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
