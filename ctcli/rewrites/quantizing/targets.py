"""Does a loader take what is about to be made: its rules, on the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ctcli.checkpoint.value import Checkpoint, Modules
from ctcli.errors import CtcliError
from ctcli.formats.architectures import strangers
from ctcli.formats.declared import read_declaration
from ctcli.formats.loaders import LOADERS, NAMES, Contents, Loader, problems
from ctcli.schemes.arguments import Scheme

LoaderChoice = Literal["vllm", "transformers", "sglang", "none"]


def takers(
    checkpoint: Checkpoint,
    linears: Modules,
    schemes: Mapping[str, Scheme],
    target: LoaderChoice | None,
) -> tuple[str, ...]:
    """What a user should know of the loaders of a result.

    Args:
        checkpoint: the result, before anything is computed.
        linears: every linear, head and embedding of the source.
        schemes: of those that are quantized.
        target: the loader that has to take it; None: one of them should; none: nobody has to.

    Returns:
        A warning where no loader takes it, or has a class for its architecture.

    Raises:
        CtcliError: the target does not take it; with all reasons.
    """
    declared = read_declaration(checkpoint.config)
    if target == "none" or declared is None:
        return ()
    shapes = _unlike(linears, schemes)
    contents = Contents(declared, shapes, checkpoint.specs.keys())
    if target:
        if found := problems(target, contents):
            raise CtcliError(
                [f"{NAMES[target]} does not take the result: {problem}" for problem in found],
                "Choose another scheme, or give --target none to make it all the same.",
            )
        return tuple(strangers(checkpoint.config, (target,)))
    reasons: dict[Loader, list[str]] = {}
    for loader in LOADERS:
        if not (found := problems(loader, contents)):
            return ()
        reasons[loader] = found
    words = "; ".join(f"{NAMES[loader]}: {found[0]}" for loader, found in reasons.items())
    return (f"No loader that is known takes the result. {words}",)


def _unlike(linears: Modules, schemes: Mapping[str, Scheme]) -> dict[str, tuple[int, ...]]:
    """[rows, columns] by module; of experts that are alike in a layer, only the first's.

    What loaders demand of one they demand of all, and a large model has ten thousands.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    experts: dict[tuple[str, str], list[str]] = {}
    for module, linear in linears.items():
        parent, is_expert, rest = module.partition(".experts.")
        number = rest.partition(".")[0]
        if is_expert and number.isdecimal():
            experts.setdefault((parent, number), []).append(module)
        else:
            shapes[module] = linear.shape
    seen: set[tuple[object, ...]] = set()
    for (parent, number), modules in experts.items():
        start = len(parent) + len(number) + len(".experts.")
        own = [(m[start:], schemes.get(m), linears[m].shape) for m in modules]
        if (alike := (parent, *own)) not in seen:
            seen.add(alike)
            shapes |= {module: linears[module].shape for module in modules}
    return shapes
