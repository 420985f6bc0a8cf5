"""From the dataclasses that declare options to a function whose signature Typer reads."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any, Literal, get_origin

import typer

from ctcli.options import Option, OptionError, options_of, parse_value

TYPED = "ctcli.typed"
"""Where the context of a command keeps the words behind its name."""


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
            raise typer.BadParameter(str(error).rstrip(".")) from error

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
        "parser": _parser(option),
        "show_default": is_required or option.words,
        "autocompletion": _completer(option.choices) if option.choices else None,
    }
    info = (
        typer.Argument(**common)
        if option.is_argument
        else typer.Option(
            *(option.flags or f"--{option.name.replace('_', '-')}").split(),
            rich_help_panel=option.panel,
            is_eager=option.instead is not None,
            callback=_ending(option.instead) if option.instead else None,
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


def _ending(instead: Callable[[str], None]) -> Callable[[typer.Context, str | None], None]:
    """What does an option's work in place of the command, before its places are missed."""

    def callback(ctx: typer.Context, value: str | None) -> None:
        if value is not None:
            if places := _places(ctx):
                raise typer.BadParameter(f"takes its value alone: {' '.join(places)} is too much.")
            instead(value)
            raise typer.Exit

    return callback


def _places(ctx: typer.Context) -> list[str]:
    """The words that were typed for the command's places, and those behind them."""
    command = ctx.command
    given, others, _ = command.make_parser(ctx).parse_args([*ctx.meta[TYPED]])
    names = [each.name for each in command.params if each.param_type_name == "argument"]
    return [*(str(given[name]) for name in names if given.get(name)), *others]


def _parser(option: Option) -> Callable[[str], Any] | None:
    """What makes a value of a word; None: Typer does that as well as any."""
    is_choice = get_origin(option.kind) is Literal
    if not (option.parse or is_choice or option.kind in (int, float)):
        return None

    def parsed(text: str) -> Any:
        try:
            return option.parse(text) if option.parse else parse_value(text, option)
        except OptionError as error:
            raise typer.BadParameter(str(error)) from error

    return parsed


def _completer(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What completes the last of the names in a word: `re:.*=W4`, `R1,R`."""

    def complete(incomplete: str) -> list[str]:
        start, last = re.fullmatch(r"(.*[=,])?(.*)", incomplete, re.DOTALL).groups()  # type: ignore[union-attr]
        # Any case is taken, and Typer drops what does not begin with the word as it was typed.
        found = [each for each in choices if each.startswith(last)]
        found = found or [low for each in choices if (low := each.lower()).startswith(last)]
        return [f"{start or ''}{each}" for each in found]

    return complete
