"""What to do with what a command has made."""

from __future__ import annotations

import shlex

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.cli.layouts import is_served
from ctcli.console import ResultSection

_ON_HUB = "hf://"


def next_steps(command: str, source: str, place: str, made: Made) -> list[ResultSection]:
    """Commands that check and serve a result, as a part of its summary.

    Args:
        command: what was done.
        source: SRC as it was given.
        place: DST as it was given.
        made: what it became.
    """
    if not isinstance(made, Checkpoint):
        return []
    lines = [f"ctcli verify {shlex.quote(place)} --against {shlex.quote(source)}"]
    is_quantized = bool(made.config.get("quantization_config"))
    if is_quantized and is_served(made):
        lines.append(f"vllm serve {shlex.quote(place.removeprefix(_ON_HUB))}")
    elif command == "equalize":
        scheme = "--scheme W4A16 --observer signed"
        lines.append(f"ctcli quantize {shlex.quote(place)} QUANTIZED {scheme}")
    return [ResultSection("next", [(line,) for line in lines])]
