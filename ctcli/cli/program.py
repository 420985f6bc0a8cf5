"""The Typer app, and its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

import typer
from typer.core import TyperCommand, TyperGroup

from ctcli import __version__
from ctcli.cli.cluster import run_cluster
from ctcli.cli.commands import REWRITES, Step
from ctcli.cli.finish import FinishOptions, finish
from ctcli.cli.helping import PAGES, command_help, pages, program_help
from ctcli.cli.inspect import InspectOptions
from ctcli.cli.inspect import inspect as inspect_source
from ctcli.cli.options import FilePlaces, Places, Shared
from ctcli.cli.parts import run_part
from ctcli.cli.run import RunOptions, run
from ctcli.cli.running import run_step
from ctcli.cli.signatures import help_of, make_command
from ctcli.cli.usage import TypedWrongly, explain
from ctcli.cli.verify import Reading, verify
from ctcli.console.pages import help_text, show_page
from ctcli.errors import UsageError
from ctcli.options import argument
from ctcli.rewrites.options import RewriteOptions
from ctcli.storage.steps import near_names
from ctcli.verifying.options import VerifyOptions

# The classes of each command's options, in the order of the help.
COMMANDS: dict[str, tuple[type, ...]] = {}


class _Writer(Protocol):
    def write(self, string: str) -> None: ...


class _Command(TyperCommand):
    """A command whose help is ours."""

    def format_help(self, ctx: object, formatter: _Writer) -> None:  # noqa: ARG002
        """Write it."""
        name = str(self.name)
        formatter.write(help_text(command_help(name, COMMANDS[name])))


class _Group(TyperGroup):
    """The program, whose help is ours."""

    def format_help(self, ctx: object, formatter: _Writer) -> None:  # noqa: ARG002
        """Write it."""
        formatter.write(help_text(program_help(COMMANDS)))


app = typer.Typer(
    name="ctcli",
    cls=_Group,
    help="Rewrite large safetensors checkpoints by streaming them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> int:
    """Run the command line; returns the exit status.

    Raises:
        CtcliError: the job cannot be done, or the command is not typed as it has to be.
    """
    try:
        return int(cast(int, app(prog_name="ctcli", standalone_mode=False)) or 0)
    except TypedWrongly as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(help_text(program_help(COMMANDS)), err=True)
            return 2
        raise explain(error, COMMANDS, sys.argv[1:]) from error


@dataclass(frozen=True)
class HelpOptions:
    """Show all about a command, or a page of the guide.

    Without a name, list all of them.
    """

    name: str | None = argument(
        "NAME", "Command or page.", default=None, words="all", choices=tuple(pages())
    )


def _help(options: HelpOptions) -> None:
    name = options.name
    if name is None:
        typer.echo(help_text(program_help(COMMANDS)))
        return
    if name not in (*COMMANDS, *pages()):
        near = near_names(name, [*COMMANDS, *pages()]).removeprefix("; ")
        raise UsageError(f"there is no command or page {name!r}.", f"{near[0].upper()}{near[1:]}.")
    if name in COMMANDS:
        typer.echo(help_text(command_help(name, COMMANDS[name], in_full=True)))
    if name in pages():
        show_page((PAGES / f"{name}.md").read_text(encoding="utf-8"))


def _register(name: str, perform: Callable[..., None], *classes: type) -> None:
    COMMANDS[name] = classes
    app.command(name=name, cls=_Command, help=help_of(classes[0]))(make_command(perform, *classes))


def _register_step(name: str, options: type, step: Callable[..., Step], places: type) -> None:
    """A command that writes what a step makes."""

    def take(options: RewriteOptions | RunOptions, where: Places, shared: Shared) -> None:
        perform = run_part if shared.part else run_cluster if shared.cluster else run_step
        perform(name, step(options), where.source, where.destination, shared)

    _register(name, take, options, places, Shared)


for _name, _rewrite in REWRITES.items():
    _places = Places if _rewrite.options.form.is_checkpoint else FilePlaces
    _register_step(_name, _rewrite.options, _rewrite.step, _places)
_register_step("run", RunOptions, run, Places)
_register("finish", finish, FinishOptions)
_register("inspect", inspect_source, InspectOptions)
_register("verify", verify, VerifyOptions, Reading)
_register("help", _help, HelpOptions)


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
