"""The Typer app, and its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from ctcli import __version__
from ctcli.cli.cluster import run_cluster
from ctcli.cli.commands import REWRITES, Step
from ctcli.cli.finish import FinishOptions, finish
from ctcli.cli.inspect import InspectOptions
from ctcli.cli.inspect import inspect as inspect_source
from ctcli.cli.options import FilePlaces, Places, Shared
from ctcli.cli.parts import run_part
from ctcli.cli.run import RunOptions, run
from ctcli.cli.running import run_step
from ctcli.cli.signatures import help_of, make_command
from ctcli.cli.verify import Reading, verify
from ctcli.rewrites.options import RewriteOptions
from ctcli.verifying.options import VerifyOptions

app = typer.Typer(
    name="ctcli",
    help="Rewrite sharded safetensors checkpoints without loading the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register(name: str, options: type, perform: Callable[..., None], *classes: type) -> None:
    app.command(name=name, help=help_of(options))(make_command(perform, *classes))


def _register_step(name: str, options: type, step: Callable[..., Step], places: type) -> None:
    """A command that writes what a step makes."""

    def take(options: RewriteOptions | RunOptions, where: Places, shared: Shared) -> None:
        perform = run_part if shared.part else run_cluster if shared.cluster else run_step
        perform(name, step(options), where.source, where.destination, shared)

    _register(name, options, take, options, places, Shared)


for _name, _rewrite in REWRITES.items():
    _places = Places if _rewrite.options.form.is_checkpoint else FilePlaces
    _register_step(_name, _rewrite.options, _rewrite.step, _places)
_register_step("run", RunOptions, run, Places)
_register("finish", FinishOptions, finish, FinishOptions)
_register("inspect", InspectOptions, inspect_source, InspectOptions)
_register("verify", VerifyOptions, verify, VerifyOptions, Reading)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"ctcli {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Rewrite sharded safetensors checkpoints without loading the model."""
