"""`ctcli inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.options import as_json, source
from ctcli.console import Result, Terminal
from ctcli.inspecting import comparing
from ctcli.inspecting.comparing import compare
from ctcli.inspecting.inspection import data_of
from ctcli.inspecting.inspection import inspect as inspect_checkpoint
from ctcli.inspecting.summary import rows_of, sections_of
from ctcli.inspecting.tensors import (
    Listed,
    Order,
    list_tensors,
    listed_data,
    listing,
    with_stats,
)
from ctcli.interrupts import WHILE_READING, interrupted_means
from ctcli.ops.runtime import give_back_memory
from ctcli.options import OptionError, argument, option, revision, subfolder
from ctcli.storage.opening import open_checkpoint


@dataclass(frozen=True)
class InspectOptions:
    """Show what a checkpoint holds, and what can be done with it, without reading weights.

    From headers and configs alone, of a hub id, too: family, parameters, dtypes, shards, fused
    sets, quantization and who loads it, which commands can run, and whatever is out of order.
    """

    source: str = source()
    other: str | None = argument(
        "OTHER",
        "Checkpoint to compare with. With --tensors, which names: a part, one with * and ?, or re: "
        "and an expression.",
        default=None,
        words="none",
    )
    tensors: bool = option(
        False, "List tensors instead (with --json: as well): all, or those that OTHER matches."
    )
    sort: Order = option("name", "What tensors are listed by; name puts layer 2 before layer 10.")
    stats: bool = option(
        False, "With --tensors: read them, and tell least, largest, rms, zeros, NaN."
    )
    revision: str | None = revision()
    subfolder: str | None = subfolder()
    json: bool = as_json()

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        idle = {"--sort": self.sort != "name", "--stats": self.stats}
        if given := [name for name, is_given in idle.items() if is_given and not self.tensors]:
            raise OptionError(f"{', '.join(given)} goes with --tensors.")


@interrupted_means(WHILE_READING)
def inspect(options: InspectOptions) -> None:
    """Show what the options ask for."""
    give_back_memory()
    source = options.source
    checkpoint = open_checkpoint(source, options.revision, subfolder=options.subfolder)
    terminal = Terminal(as_json=options.json)
    if options.other is not None and not options.tensors:
        _compare(terminal, checkpoint, options)
        return
    listed = _list(terminal, checkpoint, options) if options.tensors else []
    title = f"inspect: {source}"
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


def _list(terminal: Terminal, checkpoint: Checkpoint, options: InspectOptions) -> list[Listed]:
    listed = list_tensors(checkpoint, options.other, options.sort)
    if not options.stats:
        return listed
    nbytes = sum(tensor.spec.nbytes for tensor in listed)
    with terminal.progress("inspect", nbytes) as advance:
        return with_stats(checkpoint, listed, advance)


def _compare(terminal: Terminal, checkpoint: Checkpoint, options: InspectOptions) -> None:
    second = str(options.other)
    found = compare(checkpoint, open_checkpoint(second))
    title = f"inspect: {options.source} and {second}"
    data = {"command": "inspect", "source": options.source, "other": second, **found}
    terminal.show(Result(title, comparing.rows_of(found), [], data, comparing.sections_of(found)))
