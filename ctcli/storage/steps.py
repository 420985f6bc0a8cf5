"""The step of a recipe: a command's options as a table, and back.

Its keys are the names of the options. Behind an option that names a file stands the hash of what
the file holds, so that a recipe is not repeated with another content.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from ctcli.checkpoint.value import StepTable
from ctcli.errors import CtcliError, os_errors_of
from ctcli.options import Option, OptionError, options_of

RECIPE_HINT = "Correct the recipe; its keys are the commands' options with underscores."
_HASH = "_sha256"
Options = TypeVar("Options")


def record(options: Any) -> dict[str, Any]:
    """The options as the keys of a recipe's step, with the hash of every file that one names.

    Raises:
        CtcliError: a file cannot be read.
    """
    step: dict[str, Any] = {}
    for each in options_of(type(options)):
        value = getattr(options, each.name)
        if each.recorded == "never" or (each.recorded != "always" and value == each.default):
            continue
        step[each.name] = list(value) if isinstance(value, tuple) else value
        if each.kind is Path:
            step[each.name] = str(value) if value else None
            step[each.name + _HASH] = _sha256_of(value) if value else None
    return step


def _sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        CtcliError: it cannot be read.
    """
    with os_errors_of(str(path), "reading"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_options(options: type[Options], step: StepTable) -> Options:
    """The options of a recipe's step.

    Raises:
        CtcliError: lists every key and value that is wrong.
    """
    known = {each.name: each for each in options_of(options)}
    problems: list[str] = []
    values = {}
    for key, value in step.items():
        named = key.removesuffix(_HASH)
        if key in known:
            try:
                values[key] = _value(value, known[key])
            except OptionError as error:
                problems.append(f"{key} = {value!r}: {error}")
        elif key != named and named in known:
            problems += _changes(named, step.get(named), value)
        elif key != "use":
            problems.append(f"unknown option {key!r}{near_names(key, known)}.")
    if problems:
        raise CtcliError(problems, RECIPE_HINT)
    try:
        return options(**values)
    except OptionError as error:
        raise CtcliError(str(error), RECIPE_HINT) from error


def _value(value: Any, option: Option) -> Any:
    """A TOML value as an option's field takes it.

    Raises:
        OptionError: it cannot be one; the message says what can.
    """
    kind = option.kind
    if option.parse and (isinstance(value, str) or (kind is int and type(value) is int)):
        return option.parse(str(value))
    if get_origin(kind) is tuple:
        return _several(value, option)
    if get_origin(kind) is Literal:
        return _expect(value in get_args(kind), value, f"one of {', '.join(get_args(kind))}")
    if kind is bool:
        return _expect(isinstance(value, bool), value, "true or false")
    if kind in (int, float):
        return _number(value, option)
    _expect(isinstance(value, str), value, "a text")
    return kind(_expect("\0" not in value, value, "a text without NUL characters"))


def _several(value: Any, option: Option) -> tuple[Any, ...]:
    """The values of an option that takes several: a fixed number of integers, or any of texts."""
    kinds = get_args(option.kind)
    if Ellipsis not in kinds:
        fits = _is_list_of(value, int) and len(value) == len(kinds)
        return tuple(_expect(fits, value, "two numbers"))
    if option.parse:
        parsed: tuple[Any, ...] = option.parse(
            ",".join(_expect(_is_list_of(value, str), value, "a text"))
        )
        return parsed
    texts = [value] if isinstance(value, str) else value
    return tuple(_expect(_is_list_of(texts, str), texts, "a text, or a list of texts"))


def _number(value: Any, option: Option) -> Any:
    least, most = option.least, option.most
    fits = type(value) is int or type(value) is option.kind
    fits = fits and (least is None or least <= value) and (most is None or value <= most)
    bounds = f" from {least}" * (least is not None) + f" to {most}" * (most is not None)
    what = "a whole number" if option.kind is int else "a number"
    return option.kind(_expect(fits, value, what + bounds))


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _expect(fits: bool, value: Any, what: str) -> Any:
    if not fits:
        raise OptionError(f"give {what}.")
    return value


def _changes(key: str, path: Any, expected: Any) -> Iterator[str]:
    """Whether a file is not the one that the recipe was made with."""
    if not isinstance(path, str) or "\0" in path:
        yield f"{key}{_HASH}: there is no {key}."
        return
    found = _sha256_of(Path(path))
    if found != expected:
        yield f"{key}: {path} is not what it was: its SHA-256 is {found}, not {expected}."


def near_names(name: str, known: Iterable[str]) -> str:
    """Words for an error about an unknown name: those that it resembles, or all there are."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; near names: {', '.join(near)}" if near else f"; there are {', '.join(known)}"
