"""`ctcli sparsify`: pruning by magnitude, in groups of four (arXiv:2104.08378) or by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.reading import as_floats
from ctcli.lazy.nodes import (
    Computed,
    Exact,
    Input,
    LazyTensor,
    Node,
    Output,
    Stacked,
    Unrounded,
    axis_of,
    matrix_shape,
    starting_point,
    step_key,
)
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.experts import layout_problem, packed_experts, split_experts
from ctcli.models.modules import Module
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.patterns import check_patterns, matching
from ctcli.rewrites.quantizing.selection import reason_to_keep
from ctcli.rewrites.sparsifying.options import SparsifyOptions
from ctcli.rewrites.sparsifying.pruning import Prune, PruneAndRound, Sparsity

_NO_GAIN = "neither speed nor space in today's loaders: vLLM and transformers compute with zeros"


@dataclass(frozen=True)
class SparsifyReport:
    """What pruning does.

    Attributes:
        sparsity: how many weights stay.
        pruned: the modules.
        kept: the reason by module that is left alone.
        weights: how many weights the pruned modules have.
    """

    sparsity: Sparsity
    pruned: tuple[str, ...]
    kept: Mapping[str, str]
    weights: int

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> SparsifyReport:  # noqa: ARG002
        """Itself: what is kept does not change."""
        return self

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        modules = f"{len(self.pruned)} modules, {self.weights:,} weights"
        rows = [("pruned", f"{modules} to {self.sparsity.words}")]
        rows += [("left alone", f"{n}: {why}") for why, n in Counter(self.kept.values()).items()]
        return [*rows, ("gain", _NO_GAIN)]

    def items(self) -> list[str]:
        """Nothing more."""
        return []

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "sparsity": self.sparsity.words,
            "modules": list(self.pruned),
            "left_alone": dict(self.kept),
            "weights": self.weights,
        }


def sparsify(checkpoint: Checkpoint, options: SparsifyOptions) -> tuple[Checkpoint, SparsifyReport]:
    """Set the smallest weights of linears to zero.

    Raises:
        CtcliError: weights cannot be read, patterns match nothing, or columns are no whole groups.
    """
    dense, sparsity = as_floats(checkpoint), options.sparsity
    matrices, kept = _chosen(dense, options)
    _check_columns(matrices, sparsity)
    made: dict[str, LazyTensor] = {}
    for module in matrices:
        name, weight = module.weight_name, module.weight
        assert weight, "it was chosen for it"
        made[name] = _pruned(name, weight, dense.config, sparsity)
    shards = tuple(
        replace(shard, tensors={name: made.get(name, t) for name, t in shard.tensors.items()})
        for shard in dense.shards
    )
    step = {"use": "sparsify", **options.recipe}
    result = replace(dense, shards=shards, steps=(*dense.steps, step))
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    weights = sum(_elements(tensor.spec) for tensor in made.values())
    names = tuple(module.name for module in matrices)
    return result, SparsifyReport(sparsity, names, kept, weights)


def _chosen(
    checkpoint: Checkpoint, options: SparsifyOptions
) -> tuple[list[Module[LazyTensor]], dict[str, str]]:
    """The modules that are pruned, and the reasons by the names of others."""
    linears = {
        name: module
        for name, module in checkpoint.modules.items()
        if (weight := module.weight) and len(weight.spec.shape) in (2, 3) and _is_matrix(module)
    }
    check_patterns((*options.targets, *options.ignore), linears)
    ignored, named = matching(options.ignore, linears), matching(options.targets, linears)
    chosen: list[Module[LazyTensor]] = []
    kept: dict[str, str] = {}
    for name, module in linears.items():
        reason = reason_to_keep(module, options.default_ignore, name in named)
        if name in ignored:
            reason = "--ignore"
        if reason:
            kept[name] = reason
        else:
            chosen.append(module)
    if not chosen:
        raise CtcliError("no module is left to prune.", "Look at --dry-run and --ignore.")
    return chosen, kept


def _is_matrix(module: Module[LazyTensor]) -> bool:
    weight = module.weight
    if weight is None or weight.spec.dtype not in WEIGHT_FLOATS:
        return False
    if len(weight.spec.shape) == 3:
        return module.kind == "experts"
    return starting_point(weight) is not None


def _check_columns(modules: Sequence[Module[LazyTensor]], sparsity: Sparsity) -> None:
    problems = [
        f"{module.name}: its {module.shape[-1]} columns are not whole groups of four."
        for module in modules
        if not sparsity.fits(module.shape[-1])
    ]
    if problems:
        raise CtcliError(problems, "Leave these modules out with --ignore, or give --density.")


def _pruned(
    name: str, weight: LazyTensor, config: Mapping[str, Any], sparsity: Sparsity
) -> LazyTensor:
    """A weight, or the experts in it one by one, after pruning.

    Raises:
        CtcliError: experts are packed in a layout that is not known.
    """
    module, _, leaf = name.rpartition(".")
    if len(weight.spec.shape) == 2:
        exact = starting_point(weight)
        assert exact, "it was chosen for it"
        return _matrix(module, leaf, exact, weight.spec, sparsity)
    packed = packed_experts(name, weight.spec)
    problem = layout_problem(packed, weight.spec, config) if packed else "their place is unknown"
    split: Mapping[str, LazyTensor] = {}
    if isinstance(weight, Stacked):
        split = weight.linears
    elif isinstance(weight, Stored) and packed and not problem:
        split = split_experts(packed, weight)
    if not split:
        raise CtcliError(
            f"{name}: packed experts of an unknown layout: {problem}.",
            "Leave them out with --ignore.",
        )
    parts: dict[str, Computed] = {}
    for part, tensor in split.items():
        exact = starting_point(tensor)
        assert exact, "experts are stored, or computed from what is"
        inner, _, end = part.rpartition(".")
        parts[part] = _matrix(inner, end, exact, tensor.spec, sparsity)
    return Stacked(weight.spec, tuple(parts.values()), parts)


def _matrix(module: str, leaf: str, exact: Exact, spec: TensorSpec, sparsity: Sparsity) -> Computed:
    shape, tag = matrix_shape(spec.shape), exact.spec.dtype
    prune = Prune(leaf, tag, sparsity)
    node = Node(
        key=step_key(module, leaf, exact, "sparsify/round"),
        module=module,
        shape=shape,
        inputs={leaf: Input(exact, shape)},
        outputs={leaf: Output(spec)},
        kernel=PruneAndRound(prune, spec.dtype),
        granule=(1, sparsity.group or shape[1]),
        axis=axis_of(exact),
        before=Unrounded("", {leaf: Output(TensorSpec(tag, shape))}, prune),
    )
    return Computed(node, leaf)


def _elements(spec: TensorSpec) -> int:
    rows, columns = matrix_shape(spec.shape)
    return rows * columns
