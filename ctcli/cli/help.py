"""`ctcli help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import typer

from ctcli.cli.helping import PAGES, command_help, pages, program_help
from ctcli.console.pages import help_text, show_page
from ctcli.errors import UsageError
from ctcli.options import argument
from ctcli.storage.steps import near_names


@dataclass(frozen=True)
class HelpOptions:
    """Show all about a command, or a page of the guide.

    Without a name, list all of them.
    """

    name: str | None = argument(
        "NAME", "Command or page.", default=None, words="all", choices=tuple(pages())
    )


def show_help(options: HelpOptions, commands: Mapping[str, tuple[type, ...]]) -> None:
    """Print it.

    Args:
        options: what of.
        commands: the classes of options of each.

    Raises:
        UsageError: there is no such command or page.
    """
    name = options.name
    if name is None:
        typer.echo(help_text(program_help(commands)))
        return
    if name not in (*commands, *pages()):
        near = near_names(name, [*commands, *pages()]).removeprefix("; ")
        raise UsageError(f"there is no command or page {name!r}.", f"{near[0].upper()}{near[1:]}.")
    if name in commands:
        typer.echo(help_text(command_help(name, commands[name], in_full=True)))
    if name in pages():
        show_page((PAGES / f"{name}.md").read_text(encoding="utf-8"))
