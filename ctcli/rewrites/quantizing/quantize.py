"""`ctcli quantize`: compressed-tensors checkpoints without a model and without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint, Modules, Shard
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import Reading, dense, read_quantized
from ctcli.lazy.nodes import Computed, Exact, Input, LazyTensor, Node, starting_point
from ctcli.models.config import table
from ctcli.models.fused import FusedSet
from ctcli.rewrites.quantizing.advice import advice, measured_loss
from ctcli.rewrites.quantizing.candidates import candidates_of
from ctcli.rewrites.quantizing.config import quantization_config
from ctcli.rewrites.quantizing.input_scales import CACHE_SCALES, constant_scales, placed_scales
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.report import QuantizeReport
from ctcli.rewrites.quantizing.selection import Selection
from ctcli.rewrites.quantizing.targets import takers
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Execution, Numerics
from ctcli.schemes.weights import Quantizer, largest_magnitude, value
from ctcli.units import format_bytes


def quantize(checkpoint: Checkpoint, options: QuantizeOptions) -> tuple[Checkpoint, QuantizeReport]:
    """Replace the weights of linears by quantized ones.

    Raises:
        CtcliError: the options do not fit the checkpoint, or its quantized weights cannot be read.
    """
    reading = read_quantized(checkpoint)
    source = dense(checkpoint, reading) if reading else checkpoint
    found = candidates_of(source, options.choice)
    untied, linears = found.checkpoint, found.linears
    selection, as_stored = _unchanged(found.selection, reading, options.rest)
    made = _quantized_weights(linears, selection, as_stored, options)
    scales = options.scales
    if options.constant_input_scale:
        scales = constant_scales(
            {m: scheme for m, scheme in selection.schemes.items() if m not in as_stored}
        )
    there = {f"{module}.{leaf}" for module, each in as_stored.items() for leaf in each.stored}
    added = placed_scales(scales, selection.schemes, linears, there, untied.specs)
    shards = tuple(_quantized(shard, found.experts, made, added) for shard in untied.shards)
    kv_cache = any(name.endswith(CACHE_SCALES) for name in scales)
    config = quantization_config(
        selection.schemes,
        selection.kept,
        found.unlisted,
        named={name for name, m in linears.items() if m.kind in ("embedding", "head")},
        kv_cache=kv_cache,
        release=options.ct_version,
    )
    # What `rotate` declared for the server stays.
    declared = table(untied.config.get("quantization_config"))
    config["transform_config"] = declared.get("transform_config", {})
    step = {"use": "quantize", **options.recipe}
    new = [s for module, s in selection.schemes.items() if module not in as_stored]
    before = *untied.history, *untied.steps
    advised = advice(new, options.observer, before)
    measured = measured_loss(new, options.observer, before)
    warnings = (*untied.warnings, *advised)
    result = replace(untied, shards=shards, steps=(*untied.steps, step), warnings=warnings)
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    result = result.with_config({**untied.config, "quantization_config": config})
    loaders, warnings = takers(result, linears, selection.schemes, options.target)
    sizes = checkpoint.nbytes, result.nbytes
    result = replace(result, warnings=(*result.warnings, *warnings, *_growth(*sizes)))
    methods = {module: coded.method for module, coded in as_stored.items()}
    constant = len(scales) if options.constant_input_scale else 0
    floats = _as_floats(reading, selection)
    report = QuantizeReport(
        selection, *sizes, methods, {}, constant, measured, loaders=loaders, as_floats=floats
    )
    return result, report


def _as_floats(reading: Reading | None, selection: Selection) -> dict[str, str]:
    """The modules that were quantized and are floats now: what they were and are, by name."""
    coded = reading.coded.values() if reading else ()
    return {
        leaf.module: f"{leaf.method} -> {leaf.weight.spec.dtype}"
        for each in coded
        for leaf in (each, *each.linears)
        if leaf.module in selection.kept
    }


def _growth(before: int, after: int) -> tuple[str, ...]:
    """A warning where the result is larger than the source."""
    if after <= before:
        return ()
    sizes = f"{format_bytes(before)} -> {format_bytes(after)}"
    return (f"The result is larger than the source: {sizes} of tensors.",)


def _unchanged(
    selection: Selection, reading: Reading | None, rest: Literal["keep", "dense"]
) -> tuple[Selection, dict[str, Coded]]:
    """The weights of a quantized source that stay as they are stored, and what is then quantized.

    These are the ones that the scheme leaves alone, if the user does not want floats, and those
    that are stored in the very scheme.
    """
    kept, schemes, found = dict(selection.kept), dict(selection.schemes), {}
    stored = reading.coded.values() if reading else ()
    for coded in (leaf for each in stored for leaf in each.leaves):
        module, chosen = coded.module, schemes.get(coded.module)
        if coded.scheme is None:
            continue
        old = coded.scheme
        if chosen and (old.weights, old.format) == (chosen.weights, chosen.format):
            found[module] = _with_inputs_of(chosen, coded)
        elif module in kept and rest == "keep":
            found[module], schemes[module] = coded, coded.scheme
            del kept[module]
    return replace(selection, schemes=schemes, kept=kept), found


def _with_inputs_of(scheme: Scheme, coded: Coded) -> Coded:
    """A weight without the scales of its inputs, where a scheme has no place for them."""
    if coded.scheme and coded.scheme.needs_input_scale == scheme.needs_input_scale:
        return coded
    stored = {leaf: t for leaf, t in coded.stored.items() if not leaf.startswith("input_")}
    return replace(coded, stored=stored)


def _quantized_weights(
    linears: Modules,
    selection: Selection,
    as_stored: Mapping[str, Coded],
    options: QuantizeOptions,
) -> dict[str, Node | Coded]:
    """What each module becomes, by the name of its weight."""

    @cache
    def quantizer_of(scheme: Scheme, dtype: str) -> Quantizer:
        numerics = Numerics(scheme, dtype, options.compute_dtype, options.observer)
        return Quantizer(numerics, options.execution)

    schemes = {m: scheme for m, scheme in selection.schemes.items() if m not in as_stored}
    exact = {
        module: start
        for module in schemes
        if (weight := linears[module].weight) and (start := starting_point(weight))
    }
    shared = _shared_magnitudes(exact, schemes, selection.fused, options.execution)
    made: dict[str, Node | Coded] = {}
    for module, scheme in schemes.items():
        linear, weight = linears[module], exact[module]
        assert linear.weight, "it has one"
        quantizer = quantizer_of(scheme, linear.weight.spec.dtype)
        made[linear.weight_name] = quantizer(module, weight, shared.get(module, ()))
    return made | {linears[module].weight_name: coded for module, coded in as_stored.items()}


def _shared_magnitudes(
    weights: Mapping[str, Exact],
    schemes: Mapping[str, Scheme],
    sets: Sequence[FusedSet],
    execution: Execution,
) -> dict[str, tuple[Input, ...]]:
    """For schemes with a global scale: the values of all members of each module's fused set."""
    own = {
        module: (value(largest_magnitude(module, weights[module], execution)),)
        for module, scheme in schemes.items()
        if scheme.weights.strategy == "tensor_group"
    }
    shared: dict[str, tuple[Input, ...]] = {**own}
    for fused in sets if own else ():
        members = [module for module in fused.tensors if module in own]
        shared |= dict.fromkeys(members, tuple(each for m in members for each in own[m]))
    return shared


def _quantized(
    shard: Shard,
    experts: Mapping[str, Modules],
    made: Mapping[str, Node | Coded],
    added: Mapping[str, Mapping[str, LazyTensor]],
) -> Shard:
    """A shard with its quantized weights, where the weights were."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in shard.tensors.items():
        parts: dict[str, LazyTensor] = {name: tensor}
        if name in experts:
            linears = {m.weight_name: m.weight for m in experts[name].values() if m.weight}
            parts = linears if linears.keys() & made.keys() else parts
        for part, stored in parts.items():
            if part in made:
                tensors |= _tensors(made[part])
            else:
                tensors[part] = stored
            if part in added:
                tensors |= added[part]
    return replace(shard, tensors=tensors)


def _tensors(made: Node | Coded) -> dict[str, LazyTensor]:
    """What a module has instead of its weight, by name."""
    if isinstance(made, Node):
        return {f"{made.module}.{output}": Computed(made, output) for output in made.outputs}
    return {f"{made.module}.{suffix}": tensor for suffix, tensor in made.stored.items()}
