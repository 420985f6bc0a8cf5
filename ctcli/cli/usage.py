"""What is wrong with a command as it was typed, and what to type instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import typer

from ctcli.errors import UsageError

# Typer's public name for what it raises where a command is not typed as it has to be.
TypedWrongly: type[Exception] = typer.BadParameter.__mro__[1]

# What other tools call a command.
_COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("info", "show", "ls", "list", "stat", "stats", "describe", "diff"), "inspect"),
    **dict.fromkeys(("check", "validate", "test", "compare", "eval"), "verify"),
    **dict.fromkeys(("compress", "quant", "quantise", "oneshot", "ptq"), "quantize"),
    **dict.fromkeys(("decompress", "unpack", "upcast", "to-bf16"), "dequantize"),
    **dict.fromkeys(("export", "to-bin", "llama2c"), "export-bin"),
    **dict.fromkeys(("spinquant", "hadamard", "quip", "quarot"), "rotate"),
    **dict.fromkeys(("shard", "reshard", "split"), "reindex"),
    **dict.fromkeys(("apply", "recipe", "pipeline"), "run"),
}
# What other tools call an option: what to give here, the first that the command has.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("-o", "--output", "--out", "--output-dir", "--outfile", "--output_dir", "--save-dir"),
        ("The output is the second place: {places}",),
    ),
    **dict.fromkeys(
        ("-m", "--model", "--input", "-i", "--src", "--model-path", "--model_path"),
        ("The model is the first place: {places}",),
    ),
    **dict.fromkeys(("-j", "--jobs", "--threads", "--workers"), ("Give --num-workers N.",)),
    **dict.fromkeys(("-f", "--force", "-y", "--yes"), ("Give --overwrite to replace DST.",)),
    **dict.fromkeys(("-n", "--dryrun"), ("Give --dry-run.",)),
    **dict.fromkeys(
        ("-v", "--verbose"),
        ("Give --log-format json to see every event.", "Give --json to see everything."),
    ),
    **dict.fromkeys(("-s", "--quantization", "--method", "--preset"), ("Give --scheme NAME.",)),
    **dict.fromkeys(
        ("-g", "--groupsize", "--group_size", "--q-group-size"), ("Give --group-size N.",)
    ),
    **dict.fromkeys(("--version",), ("Give `ctcli --version`.",)),
}

# What a second place of these commands stands for.
_ONE_PLACE: Mapping[str, str] = {"verify": "To compare two checkpoints, give --against {}."}


def explain(error: Exception, commands: Collection[str], typed: Sequence[str]) -> UsageError:
    """Say what Typer found wrong, in this program's words.

    Args:
        error: a `TypedWrongly`.
        commands: all there are.
        typed: the words behind the program's name.
    """
    context = getattr(error, "ctx", None)
    command = next((word for word in typed if word in commands), "")
    place = f"ctcli {command}".strip()
    message = str(getattr(error, "message", error)).rstrip(".")
    see = f"`{place} --help` lists what there is."
    if named := re.fullmatch(r"No such command '(.*?)'\..*|No such command '(.*)'", message):
        return _no_command(named[1] or named[2], commands)
    if given := getattr(error, "option_name", None):
        return _wrong_option(error, str(given), place, message, see)
    parameter = getattr(error, "param", None)
    if parameter is not None and type(error) is not typer.BadParameter:
        hint = f"Give {_places(context, place)}; {see}"
        return UsageError(f"{place}: {_missing(context, parameter)}", hint)
    if extra := re.search(r"unexpected extra argument\(?s?\)? \((.*)\)", message):
        hint = _ONE_PLACE.get(command, _usage(context, place)).format(extra[1])
        return UsageError(f"{place}: there is no place for {extra[1]}.", hint)
    if parameter is not None:
        name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        return UsageError(f"{name} {message}.", see)
    return UsageError(f"{message}.", see)


def _no_command(name: str, commands: Collection[str]) -> UsageError:
    meant = _COMMANDS.get(name.lower())
    if meant in commands:
        return UsageError(f"there is no command {name!r}.", f"Give `ctcli {meant}`.")
    near = difflib.get_close_matches(name, commands, n=2)
    hint = f"Near names: {', '.join(near)}." if near else "`ctcli --help` lists the commands."
    return UsageError(f"there is no command {name!r}.", hint)


def _wrong_option(error: Exception, given: str, place: str, message: str, see: str) -> UsageError:
    if "requires" in message:
        return UsageError(f"{place}: {given} takes a value.", see)
    if "not take a value" in message:
        return UsageError(f"{place}: {given} takes no value.", see)
    context = getattr(error, "ctx", None)
    hint = next((h for h in _OPTIONS.get(given, ()) if _applies(h, context)), "")
    hint = hint.format(places=_places(context, place)) if hint else ""
    if not hint:
        near = [*(getattr(error, "possibilities", None) or ())]
        hint = f"Near names: {', '.join(near)}." if near else see
    return UsageError(f"{place}: there is no option {given}.", hint)


def _applies(hint: str, context: Any) -> bool:
    """Whether the command has the option, or the place, that a hint tells of."""
    params = context.command.params if context else ()
    if named := re.match(r"Give (--[a-z-]+)", hint):
        return any(named[1] in each.opts for each in params)
    places = [each.metavar for each in params if each.param_type_name == "argument"]
    if "second place" in hint:
        return places[1:2] in (["DST"], ["OUT.bin"])
    return "first place" not in hint or places[:1] == ["SRC"]


def _missing(context: Any, parameter: Any) -> str:
    """All places without a value, the first of which Typer found."""
    names = [
        each.metavar or each.human_readable_name
        for each in context.command.params
        if each.param_type_name == "argument" and each.required
    ]
    missing = names[names.index(parameter.metavar) :] if parameter.metavar in names else names
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."


def _usage(context: Any, place: str) -> str:
    return f"Give {_places(context, place)}; put quotes around names with spaces."


def _places(context: Any, place: str) -> str:
    """The command with all its places."""
    places = [each.metavar for each in context.command.params if each.param_type_name == "argument"]
    return " ".join([place, *places])
