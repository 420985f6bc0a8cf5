"""What is written of a result: a checkpoint together with its card."""

from __future__ import annotations

from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.storage.card import with_card
from ctcli.storage.layout import Layout, lay_out


def layout_of(made: Made, destination: Path) -> Layout:
    """The layout of what a command or a recipe made, the same on every machine.

    Args:
        made: the result.
        destination: DST.
    """
    written = with_card(made) if isinstance(made, Checkpoint) else made
    return lay_out(written, destination.resolve().name)
