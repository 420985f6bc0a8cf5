"""From the dataclasses that declare options to a function whose signature Typer reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any, get_origin

import typer

from ctcli.options import Option, OptionError, options_of


def make_command(perform: Callable[..., None], *classes: type) -> Callable[..., None]:
    """A function whose parameters are the options of all classes.

    Args:
        perform: called with an instance of each class, made of the options that are given.
        classes: dataclasses whose options have different names.
    """

    def command(**values: Any) -> None:
        given = {key: value for key, value in values.items() if value is not None}
        try:
            perform(*(_instance(each, given) for each in classes))
        except OptionError as error:
            raise typer.BadParameter(str(error)) from error

    parameters = [
        _parameter(each)
        for options in classes
        for each in sorted(options_of(options), key=lambda each: each.is_common)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def help_of(options: type) -> str:
    """The docstring's paragraphs, which the terminal breaks into lines."""
    paragraphs = inspect.cleandoc(options.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _instance(options: type, given: dict[str, Any]) -> Any:
    values = {each.name: given[each.name] for each in options_of(options) if each.name in given}
    return options(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _parameter(option: Option) -> inspect.Parameter:
    """The parameter; None is its default, so that only the dataclass knows the option's own."""
    is_required = option.default is MISSING
    common: dict[str, Any] = {
        "help": option.help,
        "metavar": option.metavar,
        "parser": _parser(option.parse) if option.parse else None,
        "show_default": is_required or option.words,
    }
    info = (
        typer.Argument(**common)
        if option.is_argument
        else typer.Option(
            *(option.flags or f"--{option.name.replace('_', '-')}").split(),
            min=option.least,
            max=option.most,
            rich_help_panel=option.panel,
            **common,
        )
    )
    kind = option.kind
    if get_origin(kind) is tuple:
        kind = str if option.parse else list[str]  # Typer takes a tuple for several words
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if is_required else None,
        annotation=Annotated[kind if is_required else kind | None, info],
    )


def _parser(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except OptionError as error:
            raise typer.BadParameter(str(error)) from error

    return parsed
