"""`ctcli reindex`."""

from __future__ import annotations

from typing import Annotated

import typer

from ctcli.cli.options import OFF, Destination, Shared, Source
from ctcli.cli.running import run_rewrite
from ctcli.rewrites.reindex import reindex as reindex_checkpoint


def reindex(
    source: Source,
    destination: Destination,
    shared: Shared,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            show_default=OFF,
            help="Hard-link shards that do not change, where the file system allows it: no bytes "
            "are copied, but SRC and DST then share them.",
        ),
    ] = False,
) -> None:
    """Put every fused set (q, k, v; gate, up; ...) into one shard.

    Each set goes where most of its bytes already are. Shards that do not change are copied byte
    for byte, and every other file of the checkpoint comes along.
    """
    run_rewrite(
        source,
        destination,
        lambda checkpoint: reindex_checkpoint(checkpoint, shared.max_shard_size),
        shared,
        shared.settings(link),
    )
