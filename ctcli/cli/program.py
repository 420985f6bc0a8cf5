"""The Typer app, how commands are registered, and the one place where errors are caught."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from types import FrameType
from typing import Annotated, Any, NoReturn, get_type_hints

import typer

from ctcli import __version__
from ctcli.cli.export_bin import export_bin
from ctcli.cli.options import Shared
from ctcli.cli.quantize import quantize
from ctcli.cli.reindex import reindex
from ctcli.cli.surgery import fuse_norms, rotate
from ctcli.console import Terminal
from ctcli.errors import CtcliError, Stopped

app = typer.Typer(
    name="ctcli",
    help="Rewrite sharded safetensors checkpoints without loading the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# In the order of the help.
COMMANDS = (reindex, fuse_norms, rotate, quantize, export_bin)


def _register(function: Callable[..., None]) -> None:
    """Register a command, with the fields of `Shared` in place of its parameter `shared`."""
    names = [field.name for field in fields(Shared)]

    def expanded(**options: Any) -> None:
        function(shared=Shared(**{name: options.pop(name) for name in names}), **options)

    own = [p for p in inspect.signature(function).parameters.values() if p.name != "shared"]
    every = [*own, *inspect.signature(Shared).parameters.values()]
    hints = get_type_hints(function, include_extras=True) | get_type_hints(
        Shared, include_extras=True
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    expanded.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by inspect
        [p.replace(kind=keyword, annotation=hints[p.name]) for p in every]
    )
    expanded.__annotations__ = {p.name: hints[p.name] for p in every}
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name=function.__name__.replace("_", "-"), help=text)(expanded)


for _function in COMMANDS:
    _register(_function)


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


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise Stopped(signal_number)


def main() -> None:
    """Run the command line; the only place where expected errors are caught."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except SystemExit as done:
        _leave(int(done.code or 0))
    except CtcliError as error:
        Terminal().fail(error)
        _leave(1)
    except Stopped as stopped:
        # A second signal would only hinder the way out.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Terminal().warn("interrupted; DST is as it was. The same command continues.")
        _leave(stopped.exit_code)


def _leave(exit_code: int) -> NoReturn:
    """End at once: threads may still wait for a hub, and taking torch apart takes a while."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
