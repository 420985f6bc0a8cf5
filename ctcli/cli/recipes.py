"""From the steps of a recipe to the commands' own functions: names and types are theirs."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from ctcli.checkpoint.value import Step as Options
from ctcli.cli.commands import REWRITES
from ctcli.cli.running import Step
from ctcli.errors import CtcliError, os_errors_of, problems_of

_HINT = "Correct the recipe; its keys are the commands' options with underscores."
_HASH = "_sha256"  # of the file that the option before it names


def make_steps(steps: Sequence[Options]) -> list[tuple[str, Step]]:
    """The steps of a recipe, each with its command's name.

    Args:
        steps: tables with `use` and options.

    Raises:
        CtcliError: unknown commands and options, values of a wrong type, files that are not what
            they were; lists them all.
    """
    problems: list[str] = []
    hints: list[str] = []
    made: list[tuple[str, Step]] = []
    for number, options in enumerate(steps, 1):
        use = str(options.get("use"))
        place = f"step {number} ({use})"
        if made and made[-1][1].is_file:
            problems.append(f"{place}: {made[-1][0]} makes a file, and has to come last.")
        if use not in REWRITES:
            problems.append(f"step {number}: use = {use!r}{_near(use, REWRITES)}.")
            continue
        try:
            with problems_of(place):
                made.append((use, _Call(REWRITES[use])(options)))
        except CtcliError as error:
            problems += error.problems
            hints.append(error.hint)
    if problems:
        raise CtcliError(problems, " ".join(dict.fromkeys(hints)) or _HINT)
    return made


class _Call:
    """A command's function, called with values from a recipe."""

    def __init__(self, function: Callable[..., Step]) -> None:
        self._function = function
        hints = get_type_hints(function, include_extras=True)
        # An option may be called as a word of Python's is; its parameter then ends in "_".
        self._names = {name.rstrip("_"): name for name in inspect.signature(function).parameters}
        self._hints = {key: hints[name] for key, name in self._names.items()}

    def __call__(self, options: Options) -> Step:
        """The step with these options.

        Raises:
            CtcliError: lists every option that is wrong.
        """
        if problems := [*self._problems(options)]:
            raise CtcliError(problems, _HINT)
        given = {key: value for key, value in options.items() if key in self._hints}
        values = {self._names[k]: _value(v, self._hints[k]) for k, v in given.items()}
        try:
            return self._function(**values)
        except typer.BadParameter as error:
            raise CtcliError(str(error), _HINT) from error

    def _problems(self, options: Options) -> Iterator[str]:
        """What is wrong with the keys and values."""
        for key, value in options.items():
            named = key.removesuffix(_HASH)
            if key == "use":
                continue
            if key.endswith(_HASH) and named in self._hints:
                yield from _changes(named, options.get(named), value)
            elif key not in self._hints:
                yield f"unknown option {key!r}{_near(key, self._hints)}."
            else:
                try:
                    _value(value, self._hints[key])
                except (TypeError, typer.BadParameter) as error:
                    yield f"{key} = {value!r}: {error}"


def _value(value: Any, hint: Any) -> Any:
    """A TOML value as an option's parameter takes it.

    Raises:
        TypeError: it cannot be one; the message says what can.
    """
    option = next(iter(get_args(hint)[1:]), None)
    kind = get_args(hint)[0]
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    parser = getattr(option, "parser", None)
    if parser and (isinstance(value, str) or (kind is int and type(value) is int)):
        return parser(str(value))
    if parser and kind is str and _is_list_of(value, str):
        return parser(",".join(value))
    least, most = getattr(option, "min", None), getattr(option, "max", None)
    return _plain(value, kind, least, most)


def _plain(value: Any, kind: Any, least: float | None, most: float | None) -> Any:
    if get_origin(kind) is Literal:
        return _expect(value in get_args(kind), value, f"one of {', '.join(get_args(kind))}")
    if get_origin(kind) is list:
        texts = [value] if isinstance(value, str) else value
        return _expect(_is_list_of(texts, str), texts, "a text, or a list of texts")
    if issubclass(kind, tuple):
        return kind(*_expect(_is_list_of(value, int) and len(value) == 2, value, "two numbers"))
    if kind is bool:
        return _expect(isinstance(value, bool), value, "true or false")
    if kind is int:
        fits = type(value) is int and (least is None or least <= value)
        fits = fits and (most is None or value <= most)
        bounds = f" from {least}" * (least is not None) + f" to {most}" * (most is not None)
        return _expect(fits, value, f"a whole number{bounds}")
    _expect(isinstance(value, str), value, "a text")
    return kind(_expect("\0" not in value, value, "a text without NUL characters"))


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _expect(fits: bool, value: Any, what: str) -> Any:
    if not fits:
        raise TypeError(f"give {what}.")
    return value


def _changes(key: str, path: Any, expected: Any) -> Iterator[str]:
    """Whether a file is not the one that the recipe was made with."""
    if not isinstance(path, str) or "\0" in path:
        yield f"{key}{_HASH}: there is no {key}."
        return
    with os_errors_of(path, "reading"), Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        yield f"{key}: {path} is not what it was: its SHA-256 is {found}, not {expected}."


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; near names: {', '.join(near)}" if near else f"; there are {', '.join(known)}"
