"""How a checkpoint is quantized, and who loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.formats.architectures import strangers
from ctcli.formats.declared import QUANT_METHOD, Declaration
from ctcli.formats.groups import Group
from ctcli.formats.loaders import (
    LOADERS,
    Contents,
    Loader,
    capability,
    machine_for,
    problems,
)
from ctcli.inspecting.weights import InspectedWeight


@dataclass(frozen=True)
class QuantizationSummary:
    """What config.json declares, and what is there.

    Attributes:
        method: `quant_method`.
        groups: the groups, and how many modules each quantizes.
        left_alone: modules with a matrix that none quantizes.
        transforms: rotations at run time, with their locations.
        machine: what vLLM needs to run all groups; None: it cannot, or there are none.
        capability: what SGLang needs to run all groups; None: it cannot, or there are none.
        refusals: why each loader does not take it; empty if the rules for it are not known.
        strangers: for each loader, a line if it has no class for the architecture.
    """

    method: str
    groups: tuple[tuple[Group, int], ...]
    left_alone: int
    transforms: Mapping[str, tuple[str, ...]]
    machine: str | None
    capability: str | None
    refusals: Mapping[Loader, list[str]]
    strangers: Mapping[Loader, str]


def quantization(
    declared: Declaration | None,
    weights: Mapping[str, InspectedWeight],
    names: Mapping[str, object],
    config: Mapping[str, Any],
) -> QuantizationSummary | None:
    """The same for a checkpoint; None if it declares nothing.

    Args:
        declared: what config.json says.
        weights: its parameters.
        names: of all tensors.
        config: config.json.
    """
    if declared is None:
        return None
    shapes = {name: weight.shape for name, weight in weights.items()}
    contents = Contents.of(declared, shapes, names.keys())
    quantized = filter(contents.is_quantized, contents.shapes)
    found = {module: declared.group_of(module) for module in quantized}
    counts = Counter(group.name for group in found.values() if group)
    return QuantizationSummary(
        declared.method,
        tuple((group, counts[group.name]) for group in declared.groups),
        len(contents.shapes) - len(found),
        declared.transforms,
        machine_for((group.scheme for group in declared.groups), declared),
        capability(contents.uses),
        {loader: problems(loader, contents) for loader in LOADERS}
        if declared.method == QUANT_METHOD
        else {},
        {loader: line for loader in LOADERS for line in strangers(config, (loader,))},
    )
