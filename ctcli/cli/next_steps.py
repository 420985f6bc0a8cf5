"""What to do with what a command has made."""

from __future__ import annotations

import shlex

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.console import ResultSection
from ctcli.formats.architectures import strangers
from ctcli.formats.declared import QUANT_METHOD, read_declaration
from ctcli.formats.loaders import Contents, problems

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
    if _is_served(made):
        lines.append(f"vllm serve {shlex.quote(place.removeprefix(_ON_HUB))}")
    elif command == "equalize":
        scheme = "--scheme W4A16 --observer signed"
        lines.append(f"ctcli quantize {shlex.quote(place)} QUANTIZED {scheme}")
    return [ResultSection("next", [(line,) for line in lines])]


def _is_served(made: Checkpoint) -> bool:
    """Whether vLLM takes what is quantized, as far as its rules are known."""
    declared = read_declaration(made.config)
    if declared is None or any(strangers(made.config, ("vllm",))):
        return False
    is_known = declared.method == QUANT_METHOD
    return not is_known or not problems("vllm", Contents.stored(declared, made.specs))
