"""`ctcli inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from ctcli.cli.options import OFF, AsJson, Revision, Source, source_directory
from ctcli.console import Result, Terminal
from ctcli.inspecting.inspection import data_of, list_tensors, listed_data
from ctcli.inspecting.inspection import inspect as inspect_checkpoint
from ctcli.inspecting.summary import listing, rows_of, sections_of
from ctcli.storage.opening import open_checkpoint


def inspect(
    source: Source,
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            show_default="all tensors",
            help="With --tensors: a tensor's name, or re: and an expression.",
        ),
    ] = None,
    tensors: Annotated[
        bool,
        typer.Option(
            "--tensors",
            show_default=OFF,
            help="List tensors instead (with --json: as well): all, or those that PATTERN matches.",
        ),
    ] = False,
    revision: Revision = None,
    json: AsJson = False,
) -> None:
    """Show what a checkpoint holds, and what can be done with it, without reading weights.

    From headers and configs alone, of a hub id, too: family, parameters, dtypes, shards, fused
    sets, quantization and who loads it, which commands can run, and whatever is out of order.
    """
    if pattern is not None and not tensors:
        raise typer.BadParameter("PATTERN is for --tensors.")
    source_directory(source, revision)
    checkpoint = open_checkpoint(source, revision)
    listed = list_tensors(checkpoint, pattern) if tensors else []
    terminal, title = Terminal(as_json=json), f"inspect: {source}"
    if tensors and not json:
        terminal.show(Result(title, [], [], {}, [listing(listed)]))
        return
    found = inspect_checkpoint(checkpoint)
    origin = checkpoint.origin
    data = {
        "command": "inspect",
        "source": source,
        "commit": origin.commit,
        "headers_sha256": origin.headers_sha256,
        **data_of(found),
        **({"listed": listed_data(listed)} if tensors else {}),
    }
    terminal.show(Result(title, rows_of(found), [], data, sections_of(found)))
