"""Does a loader take what is about to be made: its rules, on the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ctcli.checkpoint.value import Checkpoint, Modules
from ctcli.errors import CtcliError
from ctcli.formats.architectures import strangers
from ctcli.formats.declared import read_declaration
from ctcli.formats.loaders import (
    LOADERS,
    NAMES,
    Contents,
    Loader,
    capability,
    machine_for,
    problems,
)
from ctcli.formats.wide import wide_inputs
from ctcli.schemes.arguments import Scheme

LoaderChoice = Literal["vllm", "transformers", "sglang", "none"]


@dataclass(frozen=True)
class Takers:
    """Which loaders take a result.

    Attributes:
        needs: of those that take it, what they need and do otherwise, in words; empty: nothing.
        refusals: of the others, why they do not.
    """

    needs: Mapping[Loader, str]
    refusals: Mapping[Loader, Sequence[str]]

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        taken = [
            ("loads in", f"{NAMES[loader]}{f': {needs}' if needs else ''}")
            for loader, needs in self.needs.items()
        ]
        refused = [
            ("not in", f"{NAMES[loader]}: {each[0]}") for loader, each in self.refusals.items()
        ]
        return taken + refused

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            loader: {"loads": loader in self.needs, "problems": [*self.refusals.get(loader, ())]}
            for loader in (*self.needs, *self.refusals)
        }


def takers(
    checkpoint: Checkpoint,
    linears: Modules,
    schemes: Mapping[str, Scheme],
    target: LoaderChoice | None,
) -> tuple[Takers | None, tuple[str, ...]]:
    """What a user should know of the loaders of a result.

    Args:
        checkpoint: the result, before anything is computed.
        linears: every linear, head and embedding of the source.
        schemes: of those that are quantized.
        target: the loader that has to take it; None: one of them should; none: nobody has to.

    Returns:
        Which loaders take it, unless nobody has to; and a warning where none does, or the target
        has no class for its architecture.

    Raises:
        CtcliError: the target does not take it; with all reasons.
    """
    declared = read_declaration(checkpoint.config)
    if target == "none" or declared is None:
        return None, ()
    contents = Contents(declared, _unlike(linears, schemes), checkpoint.specs.keys())
    found = {loader: problems(loader, contents) for loader in LOADERS}
    if target and found[target]:
        raise CtcliError(
            [f"{NAMES[target]} does not take the result: {problem}" for problem in found[target]],
            "Choose another scheme, or give --target none to make it all the same.",
        )
    warnings = tuple(strangers(checkpoint.config, (target,))) if target else ()
    if all(found.values()):
        reasons = "; ".join(f"{NAMES[loader]}: {each[0]}" for loader, each in found.items())
        warnings = (f"No loader that is known takes the result. {reasons}",)
    found = {
        loader: each or [*strangers(checkpoint.config, (loader,))] for loader, each in found.items()
    }
    needs = {loader: _needs(loader, contents) for loader, each in found.items() if not each}
    return Takers(needs, {loader: each for loader, each in found.items() if each}), warnings


def _needs(loader: Loader, contents: Contents) -> str:
    """What a loader needs, and does otherwise than the scheme says, in words; empty: nothing."""
    declared = contents.declared
    schemes = [group.scheme for group in declared.groups]
    machine = {
        "vllm": machine_for(schemes, declared),
        "sglang": capability(contents.uses),
    }.get(loader)
    return "; ".join(each for each in (machine, wide_inputs(loader, schemes)) if each)


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
