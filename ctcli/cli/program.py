"""The Typer app, and how commands are registered."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from ctcli import __version__
from ctcli.cli.commands import REWRITES
from ctcli.cli.export_bin import export_bin
from ctcli.cli.inspect import inspect as inspect_source
from ctcli.cli.options import BinFile, Destination, Shared, Source, Target
from ctcli.cli.run import run
from ctcli.cli.running import Step, run_step
from ctcli.cli.verify import verify

app = typer.Typer(
    name="ctcli",
    help="Rewrite sharded safetensors checkpoints without loading the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register(name: str, function: Callable[..., Step]) -> None:
    """Make a command of a function from options to a step: SRC, DST and `Shared` are added."""
    shared = inspect.signature(Shared).parameters
    own = inspect.signature(function).parameters

    def command(source: str, destination: Target, **options: Any) -> None:
        step = function(**{name: options[name] for name in own})
        common = Shared(**{name: options[name] for name in shared})
        run_step(name, step, source, destination, common)

    hints = {
        **{name: hint for name, hint in _hints(function).items() if name == "recipe"},
        "source": Source,
        "destination": BinFile if function is export_bin else Destination,
        **_hints(function),
        **_hints(Shared),
    }
    parameters = inspect.signature(command).parameters | own | shared
    keyword = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by inspect
        [parameters[name].replace(kind=keyword, annotation=hint) for name, hint in hints.items()]
    )
    command.__annotations__ = hints
    app.command(name=name, help=_help(function))(command)


def _help(function: Callable[..., Any]) -> str:
    """The docstring's paragraphs, which the terminal breaks into lines."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _hints(of: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(of, include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return"}


for _command, _function in {**REWRITES, "run": run}.items():
    _register(_command, _function)
app.command(name="inspect", help=_help(inspect_source))(inspect_source)
app.command(name="verify", help=_help(verify))(verify)


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
