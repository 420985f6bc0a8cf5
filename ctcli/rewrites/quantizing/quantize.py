"""`ctcli quantize`: compressed-tensors checkpoints without a model and without data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint, Modules, Shard
from ctcli.errors import CtcliError
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import Reading, dense, read_quantized
from ctcli.lazy.nodes import Computed, Input, LazyTensor, Node, Stacked, starting_point
from ctcli.lazy.tensors import Stored
from ctcli.models.config import table
from ctcli.models.experts import (
    PackedExperts,
    layout_problem,
    packed_experts,
    split_experts,
    turned,
)
from ctcli.models.familiar import unfamiliar
from ctcli.models.fused import FusedSet
from ctcli.models.modules import Module, modules_of
from ctcli.models.protected import TRANSPOSED_LINEARS
from ctcli.patterns import alike, matches
from ctcli.rewrites.quantizing.advice import advice
from ctcli.rewrites.quantizing.config import quantization_config
from ctcli.rewrites.quantizing.input_scales import CACHE_SCALES, constant_scales
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.selection import Choice, Selection, select
from ctcli.rewrites.quantizing.targets import takers
from ctcli.schemes import words
from ctcli.schemes.advice import WITHOUT_CALIBRATION
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Execution, Numerics
from ctcli.schemes.weights import Quantizer, Weight, largest_magnitude, value
from ctcli.units import counted, format_bytes

_WORST = 5  # modules with the largest error that the summary shows


@dataclass(frozen=True)
class QuantizeReport:
    """What quantizing does.

    Attributes:
        selection: scheme by module, and reason by module left alone.
        bytes_before: tensor bytes of the source.
        bytes_after: tensor bytes of the output.
        as_stored: how modules were quantized before whose numbers stay, by name.
        errors: relative root mean square error by module, once it is known.
        constant: how many modules have a constant scale of their activations.
    """

    selection: Selection
    bytes_before: int
    bytes_after: int
    as_stored: Mapping[str, str]
    errors: Mapping[str, float]
    constant: int = 0

    @cached_property
    def unfamiliar(self) -> Mapping[str, int]:
        """Patterns of quantized modules whose names no record knows, and how many each matches."""
        return unfamiliar(m for m in self.selection.schemes if m not in self.as_stored)

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> QuantizeReport:
        """The same with what was measured: squares of error and of weight, summed, by module."""
        errors = {}
        for module in self.selection.schemes:
            if found := measured.get(module):
                error, weight = found
                errors[module] = math.sqrt(error / weight) if weight else 0.0
        return replace(self, errors=errors)

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        schemes = Counter(
            f"{scheme.name} ({words(scheme.weights)})"
            for module, scheme in self.selection.schemes.items()
            if module not in self.as_stored
        )
        kept, stored = Counter(self.selection.kept.values()), Counter(self.as_stored.values())
        rows = [("quantized", f"{counted(n, 'module')}: {name}") for name, n in schemes.items()]
        rows += [("as stored", f"{counted(n, 'module')}: {method}") for method, n in stored.items()]
        rows += [("left alone", f"{counted(n, 'module')}: {why}") for why, n in kept.items()]
        if self.constant:
            made = counted(self.constant, "module")
            rows.append(("input scales", f"{made}: constant, 1.0; nothing was calibrated"))
        if strange := self.unfamiliar:
            patterns, modules = counted(len(strange), "pattern"), sum(strange.values())
            found = f"{patterns}, {counted(modules, 'module')}, quantized as linears"
            rows.append(("unfamiliar", found))
        share = self.bytes_after / self.bytes_before
        before, after = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        return [*rows, ("tensor bytes", f"{before} -> {after} ({100 * share:.0f} %)")]

    def items(self) -> list[str]:
        """What becomes of which modules, and those with the largest relative error."""
        names = {module: _short_name(scheme) for module, scheme in self.selection.schemes.items()}
        kept = {module: f"left alone: {why}" for module, why in self.selection.kept.items()}
        stored = {module: f"as stored: {how}" for module, how in self.as_stored.items()}
        told = alike(names | stored | kept)
        width = max((len(pattern) for pattern, _, _ in told), default=0)
        # NaN, which is in no order with anything, comes first.
        worst = sorted(self.errors.items(), key=lambda item: (not math.isnan(item[1]), -item[1]))
        lines = [f"{error:8.5f}  {module}" for module, error in worst[:_WORST]]
        modules = [f"{name:<{width}}  {n:>4,} x  {what}" for name, n, what in told]
        return [*modules, *(["largest relative weight errors (rms):", *lines] if lines else [])]

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "modules": {
                module: {
                    "scheme": scheme.name,
                    "format": scheme.format,
                    "relative_error": self.errors.get(module),
                    "as_stored": self.as_stored.get(module),
                }
                for module, scheme in self.selection.schemes.items()
            },
            "left_alone": dict(self.selection.kept),
            "unfamiliar": dict(self.unfamiliar),
            "constant_input_scales": self.constant,
            "tensor_bytes_before": self.bytes_before,
            "tensor_bytes_after": self.bytes_after,
        }


def _short_name(scheme: Scheme) -> str:
    """A scheme in a word or two: its name, and the size of its groups."""
    size = scheme.weights.group_size
    return f"{scheme.name} g{size}" if size else scheme.name


def quantize(checkpoint: Checkpoint, options: QuantizeOptions) -> tuple[Checkpoint, QuantizeReport]:
    """Replace the weights of linears by quantized ones.

    Raises:
        CtcliError: the options do not fit the checkpoint, or its quantized weights cannot be read.
    """
    reading = read_quantized(checkpoint)
    source = dense(checkpoint, reading) if reading else checkpoint
    _check_source(source)
    choice = options.choice
    untied = _untie(source, choice)
    packed = _packed(untied)
    experts = _expert_linears(untied, packed, choice.ignore)
    linears = _linears(untied)
    for split in experts.values():
        linears |= split
    tied = [] if any(module.kind == "head" for module in linears.values()) else ["lm_head"]
    online = _online_matrices(untied)
    selection = select(linears, choice, known=(*linears, *packed, *tied, *online))
    turned_experts = _turned(untied, packed)
    selection = replace(selection, kept={**selection.kept, **online, **turned_experts})
    selection, as_stored = _unchanged(selection, reading, options.rest)
    made = _quantized_weights(linears, selection, as_stored, options)
    scales = options.scales
    if options.constant_input_scale:
        scales = constant_scales(
            {m: scheme for m, scheme in selection.schemes.items() if m not in as_stored}
        )
    added = _placed_scales(untied, linears, selection, as_stored, scales)
    inside = {untied.modules[name].weight_name: split for name, split in experts.items()}
    shards = tuple(_quantized(shard, inside, made, added) for shard in untied.shards)
    kv_cache = any(name.endswith(CACHE_SCALES) for name in scales)
    whole = [each for name, each in packed.items() if name not in experts]
    unlisted = [*tied, *(module for each in whole for module in each.linears)]
    config = quantization_config(
        selection.schemes,
        selection.kept,
        unlisted,
        named={name for name, m in linears.items() if m.kind in ("embedding", "head")},
        kv_cache=kv_cache,
        release=options.ct_version,
    )
    # What `rotate` declared for the server stays.
    declared = table(untied.config.get("quantization_config"))
    config["transform_config"] = declared.get("transform_config", {})
    step = {"use": "quantize", **options.recipe}
    new = (s for module, s in selection.schemes.items() if module not in as_stored)
    found = advice(new, options.observer, (*untied.history, *untied.steps))
    warnings = (*untied.warnings, *found)
    result = replace(untied, shards=shards, steps=(*untied.steps, step), warnings=warnings)
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    result = result.with_config({**untied.config, "quantization_config": config})
    warnings = takers(result, linears, selection.schemes, options.target)
    result = replace(result, warnings=(*result.warnings, *warnings))
    methods = {module: coded.method for module, coded in as_stored.items()}
    constant = len(scales) if options.constant_input_scale else 0
    before, after = checkpoint.nbytes, result.nbytes
    return result, QuantizeReport(selection, before, after, methods, {}, constant)


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
        if isinstance(weight, Stored) and turned(checkpoint.config):
            continue
        problem = layout_problem(experts, weight.spec, checkpoint.config)
        if isinstance(weight, Stacked):
            problem = None if weight.linears else problem or "its gate and up share scales"
        if f"{experts.parent}.{experts.role}_bias" in checkpoint.specs:
            problem = "it has a bias, which no known layout splits"
        if problem:
            problems.append(
                f"{module.weight_name}: packed experts of an unknown layout: {problem}."
            )
        elif isinstance(weight, Stacked):
            found[name] = modules_of(weight.linears, checkpoint.config)
        elif isinstance(weight, Stored):
            found[name] = modules_of(split_experts(experts, weight), checkpoint.config)
    if problems:
        raise CtcliError(
            problems, "Save the experts unpacked, one linear each, or leave them with --ignore."
        )
    return found


def _turned(checkpoint: Checkpoint, packed: Iterable[str]) -> dict[str, str]:
    """Packed experts that stay as they are stored, with the reason."""
    reason = turned(checkpoint.config)
    modules = {name: checkpoint.modules[name] for name in packed}
    return {
        name: f"{reason}, and loaders take them so"
        for name, module in modules.items()
        if reason and isinstance(module.weight, Stored)
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
    weights: Mapping[str, Weight],
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


def _placed_scales(
    checkpoint: Checkpoint,
    linears: Modules,
    selection: Selection,
    as_stored: Mapping[str, Coded],
    scales: Mapping[str, LazyTensor],
) -> dict[str, dict[str, LazyTensor]]:
    """The given scales by the tensor beside which they belong.

    Weights that stay as they are stored may have theirs.

    Raises:
        CtcliError: static schemes lack theirs, or scales are given that nothing takes.
    """
    beside = {
        f"{module}.{scheme.needs_input_scale}": linears[module].weight_name
        for module, scheme in selection.schemes.items()
        if scheme.needs_input_scale
    }
    there = {f"{module}.{leaf}" for module, each in as_stored.items() for leaf in each.stored}
    lacking = {*beside} - {*scales} - there
    if lacking and not scales:
        raise _uncalibrated(selection.schemes, lacking)
    problems = [f"{name}: the scheme is static and needs it." for name in sorted(lacking)]
    parents = {name.rpartition(".")[0].rpartition(".")[0]: name for name in checkpoint.specs}
    placed: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in scales.items():
        parent = name.rpartition(".")[0] if name.endswith(CACHE_SCALES) else None
        home = parents.get(parent or "") if parent else beside.get(name)
        if home is None:
            problems.append(f"{name}: in the file of input scales, but nothing takes it.")
        else:
            placed.setdefault(home, {})[name] = tensor
    if problems:
        raise CtcliError(
            problems,
            "Static schemes need calibrated scales: give --input-scales FILE.safetensors with "
            "<module>.input_scale (FP8, INT8) or <module>.input_global_scale (NVFP4); or for NVFP4 "
            "--constant-input-scale.",
        )
    return placed


def _uncalibrated(schemes: Mapping[str, Scheme], lacking: Collection[str]) -> CtcliError:
    """The error of static schemes without any scales: names what needs no calibration."""
    names = {s.name for m, s in schemes.items() if f"{m}.{s.needs_input_scale}" in lacking}
    others = {name: WITHOUT_CALIBRATION.get(name.upper()) for name in sorted(names)}
    given = "Give --input-scales FILE.safetensors with <module>.input_scale (FP8, INT8) or "
    return CtcliError(
        [f"{name}: its activations have static scales, which need calibration." for name in others],
        "".join(f"{o} needs no calibration. " for o in others.values() if o)
        + f"{given}<module>.input_global_scale (NVFP4); or for NVFP4 --constant-input-scale.",
    )


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
