"""`ctcli reindex`."""

from __future__ import annotations

from typing import Annotated

import typer

from ctcli.cli.options import OFF, MaxShardSize
from ctcli.cli.running import Step
from ctcli.rewrites.reindex import reindex as reindex_checkpoint


def reindex(
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            show_default=OFF,
            help="Hard-link shards that do not change, where the file system allows it: no bytes "
            "are copied, but SRC and DST then share them.",
        ),
    ] = False,
    max_shard_size: MaxShardSize = None,
) -> Step:
    """Put every fused set (q, k, v; gate, up; ...) into one shard.

    Each set goes where most of its bytes already are. Shards that do not change are copied byte
    for byte, and every other file of the checkpoint comes along.
    """
    return Step(lambda checkpoint: reindex_checkpoint(checkpoint, max_shard_size), link=link)
