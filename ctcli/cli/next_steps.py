"""What to do with what a command has made."""

from __future__ import annotations

import shlex

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.console import ResultSection
from ctcli.formats.architectures import strangers

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
    if made.config.get("quantization_config"):
        if not [*strangers(made.config, ("vllm",))]:
            lines.append(f"vllm serve {shlex.quote(place.removeprefix(_ON_HUB))}")
    elif command in ("rotate", "dequantize"):
        lines.append(f"ctcli quantize {shlex.quote(place)} QUANTIZED --scheme W4A16")
    return [ResultSection("next", [(line,) for line in lines])]
