"""The Typer app, and its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Annotated, Any, Protocol, cast

import typer
from typer.core import TyperCommand, TyperGroup

from ctcli import __version__
from ctcli.cli.commands import REWRITES, Step
from ctcli.cli.options import FilePlaces, Places, Shared
from ctcli.cli.signatures import TYPED, help_of, make_command
from ctcli.rewrites.options import RewriteOptions

Performer = tuple[Callable[..., None], tuple[type, ...]]


class _Writer(Protocol):
    def write(self, string: str) -> None: ...


class _Command(TyperCommand):
    """A command whose help is ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words for options that do something in place of the command."""
        ctx.meta[TYPED] = [*args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: object, formatter: _Writer) -> None:  # noqa: ARG002
        """Write it."""
        from ctcli.cli.helping import command_help
        from ctcli.console.pages import help_text

        name = str(self.name)
        formatter.write(help_text(command_help(name, COMMANDS[name])))


class _Group(TyperGroup):
    """The program, whose help is ours, and whose commands are made when they are asked for."""

    def format_help(self, ctx: object, formatter: _Writer) -> None:  # noqa: ARG002
        """Write it."""
        formatter.write(_help_of_program())

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002
        """All of them."""
        return [*_PERFORMERS]

    def get_command(self, ctx: object, cmd_name: str) -> Any:  # noqa: ARG002
        """One of them; None: there is no such."""
        return _command(cmd_name) if cmd_name in _PERFORMERS else None


_SETTINGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="ctcli",
    cls=_Group,
    help="Rewrite large safetensors checkpoints by streaming them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)


def main() -> int:
    """Run the command line; returns the exit status.

    Raises:
        CtcliError: the job cannot be done, or the command is not typed as it has to be.
    """
    from ctcli.cli.usage import TypedWrongly, explain

    try:
        return int(cast(int, app(prog_name="ctcli", standalone_mode=False)) or 0)
    except TypedWrongly as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(_help_of_program(), err=True)
            return 2
        raise explain(error, COMMANDS, sys.argv[1:]) from error


def _help_of_program() -> str:
    from ctcli.cli.helping import program_help
    from ctcli.console.pages import help_text

    return help_text(program_help(COMMANDS))


def _writer(name: str, options: type, step: Callable[..., Step], places: type) -> Performer:
    """A command that writes what a step makes."""

    def write(options: RewriteOptions, where: Places, shared: Shared) -> None:
        if shared.part:
            from ctcli.cli.parts import run_part as perform
        elif shared.cluster:
            from ctcli.cli.cluster import run_cluster as perform
        else:
            from ctcli.cli.running import run_step as perform
        perform(name, step(options), where.source, where.destination, shared)

    return write, (options, places, Shared)


def _rewrite(name: str) -> Performer:
    rewrite = REWRITES[name]
    options = rewrite.options
    places = Places if options.form.is_checkpoint else FilePlaces
    return _writer(name, options, rewrite.step, places)


def _run() -> Performer:
    from ctcli.cli.run import RunOptions, run

    return _writer("run", RunOptions, run, Places)


def _finish() -> Performer:
    from ctcli.cli.finish import FinishOptions, finish

    return finish, (FinishOptions,)


def _inspect() -> Performer:
    from ctcli.cli.inspect import InspectOptions, inspect

    return inspect, (InspectOptions,)


def _verify() -> Performer:
    from ctcli.cli.verify import VerifyPlaces, verify
    from ctcli.verifying.options import VerifyOptions

    return verify, (VerifyOptions, VerifyPlaces)


def _help() -> Performer:
    from ctcli.cli.help import HelpOptions, show_help

    return partial(show_help, commands=COMMANDS), (HelpOptions,)


_PERFORMERS: Mapping[str, Callable[[], Performer]] = {
    **{name: partial(_rewrite, name) for name in REWRITES},
    "run": _run,
    "finish": _finish,
    "inspect": _inspect,
    "verify": _verify,
    "help": _help,
}


class _Commands(Mapping[str, tuple[type, ...]]):
    """The classes of each command's options, in the order of the help; imported when asked for."""

    def __getitem__(self, name: str) -> tuple[type, ...]:
        _, classes = _PERFORMERS[name]()
        return classes

    def __contains__(self, name: object) -> bool:
        return name in _PERFORMERS

    def __iter__(self) -> Iterator[str]:
        return iter(_PERFORMERS)

    def __len__(self) -> int:
        return len(_PERFORMERS)


COMMANDS = _Commands()


@cache
def _command(name: str) -> Any:
    """A command as Typer makes it."""
    perform, classes = _PERFORMERS[name]()
    alone = typer.Typer(add_completion=False, context_settings=_SETTINGS)
    alone.command(name, cls=_Command, help=help_of(classes[0]))(make_command(perform, *classes))
    return typer.main.get_command(alone)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"ctcli {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            *("-V", "--version"),
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Rewrite large safetensors checkpoints by streaming them."""
