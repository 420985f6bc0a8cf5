"""What of a checkpoint may be quantized: its linears, those inside packed experts, and its head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctcli.checkpoint.value import Checkpoint, Modules
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import Computed, LazyTensor, Stacked, starting_point
from ctcli.lazy.tensors import Stored
from ctcli.models.experts import (
    PackedExperts,
    layout_problem,
    packed_experts,
    split_experts,
    turned,
)
from ctcli.models.modules import Module, modules_of
from ctcli.models.protected import TRANSPOSED_LINEARS
from ctcli.models.turned_experts import are_turned, turned_linears, turned_problem
from ctcli.patterns import matches
from ctcli.rewrites.quantizing.selection import Choice, Selection, select


@dataclass(frozen=True)
class Candidates:
    """What may be quantized, and what is chosen.

    Attributes:
        checkpoint: as it is quantized: a tied head has a weight of its own if the user names it.
        linears: every module with a two-dimensional weight, in packed experts, too.
        experts: the linears that a tensor of packed experts splits into, by its name.
        unlisted: modules that servers build as linears, and that have no such weight here.
        selection: how each is quantized, or why it is left alone.
    """

    checkpoint: Checkpoint
    linears: Modules
    experts: Mapping[str, Modules]
    unlisted: Sequence[str]
    selection: Selection


def candidates_of(source: Checkpoint, choice: Choice) -> Candidates:
    """The linears of a dense checkpoint, and what a user's choice makes of them.

    Raises:
        CtcliError: there is nothing that a server would quantize, or the choice does not fit.
    """
    _check_source(source)
    untied = _untie(source, choice)
    packed = _packed(untied)
    experts = _expert_linears(untied, packed, choice.ignore)
    linears = _linears(untied)
    for split in experts.values():
        linears |= split
    tied = [] if any(module.kind == "head" for module in linears.values()) else ["lm_head"]
    online = _online_matrices(untied)
    selection = select(linears, choice, known=(*linears, *packed, *tied, *online))
    if are_turned(untied.config):
        _check_all_alike(packed, selection)
    kept = {**selection.kept, **online, **_turned(untied, packed)}
    whole = (each for name, each in packed.items() if name not in experts)
    return Candidates(
        untied,
        linears,
        {untied.modules[name].weight_name: split for name, split in experts.items()},
        [*tied, *(module for each in whole for module in each.linears)],
        replace(selection, kept=kept),
    )


def _check_source(checkpoint: Checkpoint) -> None:
    if checkpoint.config.get("model_type") in TRANSPOSED_LINEARS:
        raise CtcliError(
            f"{checkpoint.origin.name}: {checkpoint.config['model_type']} has no linears: its "
            "weights are stored transposed, in a class that no server quantizes.",
            "There is no way to serve such a model quantized.",
        )
    if not checkpoint.config:
        raise CtcliError(
            f"{checkpoint.origin.name}: config.json, which has to declare the quantization, is "
            "missing, empty or not JSON.",
            "Add the model's config.json, or repair it.",
        )


def _packed(checkpoint: Checkpoint) -> dict[str, PackedExperts]:
    """What packs experts, by module."""
    return {
        name: packed
        for name, module in checkpoint.modules.items()
        if module.weight and (packed := packed_experts(name, module.weight.spec))
    }


def _expert_linears(
    checkpoint: Checkpoint, packed: Mapping[str, PackedExperts], ignore: Sequence[str]
) -> dict[str, Modules]:
    """The modules that each packed tensor of experts splits into, if it is not ignored."""
    problems = []
    found: dict[str, Modules] = {}
    for name, experts in packed.items():
        module = checkpoint.modules[name]
        weight = module.weight
        if weight is None or any(matches(pattern, name) for pattern in ignore):
            continue
        if _stays_packed(weight, checkpoint.config):
            continue
        has_bias = f"{experts.parent}.{experts.role}_bias" in checkpoint.specs
        linears = _split(experts, weight, checkpoint.config)
        if has_bias:
            linears = "it has a bias, which no known layout splits"
        if isinstance(linears, str):
            problems.append(
                f"{module.weight_name}: packed experts of an unknown layout: {linears}."
            )
        else:
            found[name] = modules_of(linears, checkpoint.config)
    if problems:
        raise CtcliError(
            problems, "Save the experts unpacked, one linear each, or leave them with --ignore."
        )
    return found


def _split(
    experts: PackedExperts, weight: LazyTensor, config: Mapping[str, Any]
) -> Mapping[str, LazyTensor] | str:
    """The linears that packed experts hold, by name, or why they cannot be told apart."""
    if isinstance(weight, Stacked) and weight.linears:
        return weight.linears
    if are_turned(config) and isinstance(weight, Stored | Stacked):
        return turned_problem(experts, weight.spec, config) or turned_linears(experts, weight)
    problem = layout_problem(experts, weight.spec, config)
    if isinstance(weight, Stored):
        return problem or split_experts(experts, weight)
    return problem or "its gate and up share scales"


def _stays_packed(weight: LazyTensor, config: Mapping[str, Any]) -> bool:
    """Whether loaders take such experts in one tensor only."""
    known = bool(turned(config)) and not are_turned(config)
    return known and not (isinstance(weight, Stacked) and weight.linears)


def _check_all_alike(packed: Mapping[str, PackedExperts], selection: Selection) -> None:
    """Refuse some of Llama-4's experts as linears beside others that are packed.

    vLLM takes all for packed where one is.
    """
    split = [name for name, e in packed.items() if selection.schemes.keys() & {*e.linears}]
    left = [name for name in packed if name not in split]
    if split and left:
        raise CtcliError(
            f"{left[0]}: vLLM loads the experts of all layers packed, or those of all as linears, "
            f"and {len(split)} of {len(packed)} tensors of experts are to be quantized.",
            "Quantize all of them, or none: --ignore 're:.*\\.experts\\..*'.",
        )


def _turned(checkpoint: Checkpoint, packed: Iterable[str]) -> dict[str, str]:
    """Packed experts that stay as they are stored, with the reason."""
    reason = turned(checkpoint.config)
    modules = {name: checkpoint.modules[name] for name in packed}
    return {
        name: f"{reason}, and loaders take them so"
        for name, module in modules.items()
        if module.weight and _stays_packed(module.weight, checkpoint.config)
    }


def _untie(checkpoint: Checkpoint, choice: Choice) -> Checkpoint:
    """Give a tied lm_head a weight of its own if the user names it."""
    named = {pattern for pattern, _ in choice.schemes} | {*choice.targets}
    if "lm_head" not in named or "lm_head.weight" in checkpoint.specs:
        return checkpoint
    embeddings = [m for m in checkpoint.modules.values() if m.kind == "embedding" and m.weight]
    if not embeddings:
        return checkpoint
    name = f"{embeddings[0].name}.weight"
    shards = tuple(
        replace(shard, tensors={**shard.tensors, "lm_head.weight": shard.tensors[name]})
        if name in shard.tensors
        else shard
        for shard in checkpoint.shards
    )
    config = {**checkpoint.config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return replace(checkpoint, shards=shards).with_config(config)


def _linears(checkpoint: Checkpoint) -> dict[str, Module[LazyTensor]]:
    """Every module with a two-dimensional weight."""
    return {
        name: module
        for name, module in checkpoint.modules.items()
        if (weight := module.weight) and len(weight.spec.shape) == 2 and starting_point(weight)
    }


def _online_matrices(checkpoint: Checkpoint) -> dict[str, str]:
    """The matrices that an earlier step writes for the server, with why they are left alone."""
    return {
        name: "online transforms"
        for name, module in checkpoint.modules.items()
        if isinstance(module.weight, Computed) and not starting_point(module.weight)
    }
