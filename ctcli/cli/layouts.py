"""What is written of a result: a checkpoint together with its card."""

from __future__ import annotations

from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.formats.serving import is_refused
from ctcli.storage.card import model_card, with_card
from ctcli.storage.layout import Layout, lay_out


def layout_of(made: Made, destination: Path) -> Layout:
    """The layout of what a command or a recipe made, the same on every machine.

    Args:
        made: the result.
        destination: DST.
    """
    written = with_card(made, is_served(made)) if isinstance(made, Checkpoint) else made
    return lay_out(written, destination.resolve().name)


def card_of(made: Checkpoint, command: str, name: str, token: str | None) -> bytes:
    """The card of a result on a hub; see `model_card`."""
    return model_card(made, command, name, token, is_served(made))


def is_served(made: Checkpoint) -> bool:
    """Whether vLLM takes a result, as far as it is known."""
    return not is_refused(made.config, made.specs)
