"""`ctcli quantize`: compressed-tensors checkpoints without a model and without data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint, Shard
from ctcli.errors import CtcliError
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import Reading, dense, read_quantized
from ctcli.lazy.nodes import Computed, LazyTensor, Node, Stacked, starting_point
from ctcli.lazy.tensors import Stored
from ctcli.models.config import table
from ctcli.models.experts import (
    expert_modules,
    layout_problem,
    packed_experts,
    split_experts,
)
from ctcli.models.fused import fused_sets
from ctcli.models.protected import TRANSPOSED_LINEARS, is_head
from ctcli.patterns import matches
from ctcli.rewrites.quantizing.config import quantization_config
from ctcli.rewrites.quantizing.input_scales import CACHE_SCALES
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.selection import Choice, Selection, select
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Execution, Numerics
from ctcli.schemes.weights import Weight, largest_magnitude, quantized
from ctcli.units import format_bytes

# The weights of experts by name.
Experts = Mapping[str, Stored] | Mapping[str, Computed]
_WORST = 10  # modules with the largest error that the summary shows


@dataclass(frozen=True)
class QuantizeReport:
    """What quantizing does.

    Attributes:
        selection: scheme by module, and reason by module left alone.
        bytes_before: tensor bytes of the source.
        bytes_after: tensor bytes of the output.
        as_stored: how modules were quantized before whose numbers stay, by name.
        errors: relative root mean square error by module, once it is known.
    """

    selection: Selection
    bytes_before: int
    bytes_after: int
    as_stored: Mapping[str, str]
    errors: Mapping[str, float]

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
            scheme.name
            for module, scheme in self.selection.schemes.items()
            if module not in self.as_stored
        )
        kept, stored = Counter(self.selection.kept.values()), Counter(self.as_stored.values())
        made = ", ".join(f"{n} modules {name}" for name, n in schemes.items())
        rows = [("quantized", made)] if made else []
        rows += [("as stored", f"{n} modules: {method}") for method, n in stored.items()]
        rows += [("left alone", f"{n}: {reason}") for reason, n in kept.items()]
        share = self.bytes_after / self.bytes_before
        before, after = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        return [*rows, ("tensor bytes", f"{before} -> {after} ({100 * share:.0f} %)")]

    def items(self) -> list[str]:
        """The modules with the largest relative error."""
        # NaN, which is in no order with anything, comes first.
        worst = sorted(self.errors.items(), key=lambda item: (not math.isnan(item[1]), -item[1]))
        lines = [f"{error:8.5f}  {module}" for module, error in worst[:_WORST]]
        return ["largest relative weight error (rms):", *lines] if lines else []

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
            "tensor_bytes_before": self.bytes_before,
            "tensor_bytes_after": self.bytes_after,
        }


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
    experts = _expert_weights(untied, choice.ignore)
    weights = _weights(untied)
    for parts in experts.values():
        weights |= {name.removesuffix(".weight"): tensor for name, tensor in parts.items()}
    tied = [] if any(map(is_head, weights)) else ["lm_head"]
    packed = [name.removesuffix(".weight") for name, _ in untied.tensors() if "experts" in name]
    specs = {module: tensor.spec for module, tensor in weights.items()}
    online = _online_matrices(untied)
    selection = select(specs, untied.config, choice, known=(*specs, *packed, *tied, *online))
    selection = replace(selection, kept={**selection.kept, **online})
    selection, as_stored = _unchanged(selection, reading, options.rest)
    made = _quantized_weights(weights, selection, as_stored, options)
    added = _placed_scales(untied, selection, options.scales)
    shards = tuple(_quantized(shard, experts, made, added) for shard in untied.shards)
    kv_cache = any(name.endswith(CACHE_SCALES) for name in options.scales)
    unlisted = [*tied, *_packed_modules(untied, experts)]
    config = quantization_config(selection, unlisted, kv_cache)
    # What `rotate` declared for the server stays.
    declared = table(untied.config.get("quantization_config"))
    config["transform_config"] = declared.get("transform_config", {})
    step = {"use": "quantize", **options.recipe}
    result = replace(untied, shards=shards, steps=(*untied.steps, step))
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    result = result.with_config({**untied.config, "quantization_config": config})
    methods = {module: coded.method for module, coded in as_stored.items()}
    return result, QuantizeReport(selection, checkpoint.nbytes, result.nbytes, methods, {})


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
            found[module] = coded
        elif module in kept and rest == "keep":
            found[module], schemes[module] = coded, coded.scheme
            del kept[module]
    return Selection(schemes, kept), found


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


def _expert_weights(checkpoint: Checkpoint, ignore: Sequence[str]) -> Mapping[str, Experts]:
    """For every packed tensor of experts that is not ignored: the weights it splits into."""
    problems = []
    found: dict[str, Experts] = {}
    names = {name for name, _ in checkpoint.tensors()}
    for name, tensor in checkpoint.tensors():
        packed = packed_experts(name, tensor.spec)
        module = name.removesuffix(".weight")
        if packed is None or not isinstance(tensor, (Stored, Stacked)):
            continue
        if any(matches(pattern, module) for pattern in ignore):
            continue
        problem = layout_problem(packed, tensor.spec, checkpoint.config)
        if isinstance(tensor, Stacked):
            problem = None if tensor.linears else problem or "its gate and up share scales"
        if f"{packed.parent}.{packed.role}_bias" in names:
            problem = "it has a bias, which no known layout splits"
        if problem:
            problems.append(f"{name}: packed experts of an unknown layout: {problem}.")
        elif isinstance(tensor, Stacked):
            found[name] = tensor.linears
        else:
            found[name] = split_experts(packed, tensor)
    if problems:
        raise CtcliError(
            problems, "Save the experts unpacked, one linear each, or leave them with --ignore."
        )
    return found


def _packed_modules(checkpoint: Checkpoint, split: Collection[str]) -> Iterator[str]:
    """The linears inside tensors of experts that stay packed: servers ask for them one by one."""
    for name, tensor in checkpoint.tensors():
        packed = packed_experts(name, tensor.spec)
        if packed and name not in split:
            yield from expert_modules(packed, tensor.spec.shape[0])


def _untie(checkpoint: Checkpoint, choice: Choice) -> Checkpoint:
    """Give a tied lm_head a weight of its own if the user names it."""
    named = {pattern for pattern, _ in choice.schemes} | {*choice.targets}
    embeddings = [m for m in checkpoint.modules.values() if m.kind == "embedding" and m.weight]
    if "lm_head" not in named or "lm_head.weight" in checkpoint.specs or not embeddings:
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


def _weights(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """Every two-dimensional weight, by module."""
    return {
        name: module.weight
        for name, module in checkpoint.modules.items()
        if len(module.shape) == 2 and module.weight and starting_point(module.weight)
    }


def _online_matrices(checkpoint: Checkpoint) -> dict[str, str]:
    """The matrices that an earlier step writes for the server, with why they are left alone."""
    return {
        name: "online transforms"
        for name, module in checkpoint.modules.items()
        if isinstance(module.weight, Computed) and not starting_point(module.weight)
    }


def _quantized_weights(
    weights: Mapping[str, LazyTensor],
    selection: Selection,
    as_stored: Mapping[str, Coded],
    options: QuantizeOptions,
) -> dict[str, Mapping[str, LazyTensor]]:
    """The tensors of each module, by suffix."""
    nodes = _nodes(
        weights,
        {m: scheme for m, scheme in selection.schemes.items() if m not in as_stored},
        options,
    )
    computed = {
        module: {suffix: Computed(node, suffix) for suffix in node.outputs}
        for module, node in nodes.items()
    }
    return {**computed, **{module: coded.stored for module, coded in as_stored.items()}}


def _nodes(
    weights: Mapping[str, LazyTensor], schemes: Mapping[str, Scheme], options: QuantizeOptions
) -> dict[str, Node]:
    """What computes the tensors of each module."""
    found = {module: starting_point(weights[module]) for module in schemes}
    exact = {module: weight for module, weight in found.items() if weight}
    shared = _shared_magnitudes(exact, schemes, options.execution)
    return {
        module: quantized(
            module,
            exact[module],
            Numerics(scheme, weights[module].spec.dtype, options.compute_dtype, options.observer),
            options.execution,
            shared.get(module),
        )
        for module, scheme in schemes.items()
    }


def _shared_magnitudes(
    weights: Mapping[str, Weight], schemes: Mapping[str, Scheme], execution: Execution
) -> dict[str, Node]:
    """For schemes with a global scale: the value that each fused set, or lone module, shares."""
    modules = [m for m, s in schemes.items() if s.weights.strategy == "tensor_group"]
    sets = {fused.name: fused.tensors for fused in fused_sets(modules)}
    lone = set(modules).difference(*sets.values())
    shared: dict[str, Node] = {}
    for name, members in {**sets, **{m: (m,) for m in modules if m in lone}}.items():
        magnitude = largest_magnitude(name, {m: weights[m] for m in members}, execution)
        shared |= dict.fromkeys(members, magnitude)
    return shared


def _placed_scales(
    checkpoint: Checkpoint, selection: Selection, scales: Mapping[str, LazyTensor]
) -> dict[str, dict[str, LazyTensor]]:
    """The given scales by the tensor beside which they belong.

    Raises:
        CtcliError: static schemes lack theirs, or scales are given that nothing takes.
    """
    beside = {
        f"{module}.{scheme.needs_input_scale}": module
        for module, scheme in selection.schemes.items()
        if scheme.needs_input_scale
    }
    problems = [
        f"{name}: the scheme is static and needs it." for name in sorted({*beside} - {*scales})
    ]
    parents = {name.rpartition(".")[0].rpartition(".")[0]: name for name, _ in checkpoint.tensors()}
    placed: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in scales.items():
        parent = name.rpartition(".")[0] if name.endswith(CACHE_SCALES) else None
        home = parents.get(parent or "") if parent else beside.get(name)
        if home is None:
            problems.append(f"{name}: in the file of input scales, but nothing takes it.")
        else:
            placed.setdefault(home.removesuffix(".weight"), {})[name] = tensor
    if problems:
        raise CtcliError(
            problems,
            "Static schemes need calibrated scales: give --input-scales FILE.safetensors with "
            "<module>.input_scale (FP8, INT8) or <module>.input_global_scale (NVFP4).",
        )
    return placed


def _quantized(
    shard: Shard,
    experts: Mapping[str, Experts],
    made: Mapping[str, Mapping[str, LazyTensor]],
    added: Mapping[str, Mapping[str, LazyTensor]],
) -> Shard:
    """A shard with its quantized weights, where the weights were."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in shard.tensors.items():
        parts: Mapping[str, LazyTensor] = experts.get(name, {})
        if not any(part.removesuffix(".weight") in made for part in parts):
            parts = {name: tensor}
        for part, stored in parts.items():
            module = part.removesuffix(".weight")
            if module != part and module in made:
                for suffix, lazy in made[module].items():
                    tensors[f"{module}.{suffix}"] = lazy
            else:
                tensors[part] = stored
            tensors |= added.get(module, {})
    return replace(shard, tensors=tensors)
