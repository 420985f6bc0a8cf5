"""`ctcli inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from ctcli.cli.options import as_json, source, source_directory
from ctcli.console import Result, Terminal
from ctcli.inspecting.inspection import data_of, list_tensors, listed_data
from ctcli.inspecting.inspection import inspect as inspect_checkpoint
from ctcli.inspecting.summary import listing, rows_of, sections_of
from ctcli.options import OptionError, option, revision
from ctcli.storage.opening import open_checkpoint


@dataclass(frozen=True)
class InspectOptions:
    """Show what a checkpoint holds, and what can be done with it, without reading weights.

    From headers and configs alone, of a hub id, too: family, parameters, dtypes, shards, fused
    sets, quantization and who loads it, which commands can run, and whatever is out of order.
    """

    source: str = source()
    pattern: str | None = option(
        None,
        "With --tensors: a tensor's name, or re: and an expression.",
        "all tensors",
        metavar="PATTERN",
        is_argument=True,
    )
    tensors: bool = option(
        False, "List tensors instead (with --json: as well): all, or those that PATTERN matches."
    )
    revision: str | None = revision()
    json: bool = as_json()

    def __post_init__(self) -> None:
        """Refuse a pattern that would have no effect."""
        if self.pattern is not None and not self.tensors:
            raise OptionError("PATTERN is for --tensors.")


def inspect(options: InspectOptions) -> None:
    """Show what the options ask for."""
    source = options.source
    source_directory(source, options.revision)
    checkpoint = open_checkpoint(source, options.revision)
    listed = list_tensors(checkpoint, options.pattern) if options.tensors else []
    terminal, title = Terminal(as_json=options.json), f"inspect: {source}"
    if options.tensors and not options.json:
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
        **({"listed": listed_data(listed)} if options.tensors else {}),
    }
    terminal.show(Result(title, rows_of(found), [], data, sections_of(found)))
