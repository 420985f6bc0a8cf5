"""Does a loader take what is about to be made: its rules, on the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.architectures import strangers
from ctcli.formats.declared import read_declaration
from ctcli.formats.loaders import LOADERS, Contents, Loader, problems

Target = Literal["vllm", "transformers", "none"]
_NAMES: Mapping[Loader, str] = {"vllm": "vLLM", "transformers": "transformers"}


def takers(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], target: Target | None
) -> tuple[str, ...]:
    """What a user should know of the loaders of a result.

    Args:
        checkpoint: the result, before anything is computed.
        shapes: [rows, columns] of every linear, head and embedding before packing, by module.
        target: the loader that has to take it; None: one of them should; none: nobody has to.

    Returns:
        A warning where no loader takes it, or has a class for its architecture.

    Raises:
        CtcliError: the target does not take it; with all reasons.
    """
    declared = read_declaration(checkpoint.config)
    if target == "none" or declared is None:
        return ()
    contents = Contents(declared, shapes, checkpoint.specs.keys())
    if target:
        if found := problems(target, contents):
            raise CtcliError(
                [f"{_NAMES[target]} does not take the result: {problem}" for problem in found],
                "Choose another scheme, or give --target none to make it all the same.",
            )
        return tuple(strangers(checkpoint.config, (target,)))
    reasons: dict[Loader, list[str]] = {}
    for loader in LOADERS:
        if not (found := problems(loader, contents)):
            return ()
        reasons[loader] = found
    words = "; ".join(f"{_NAMES[loader]}: {found[0]}" for loader, found in reasons.items())
    return (f"No loader that is known takes the result. {words}",)
