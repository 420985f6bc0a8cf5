"""`ctcli equalize`: columns of equal weight, by Sinkhorn's scaling, without a change to the model.

Rounding a group of weights to 4 bits loses what its largest one decides. Columns that are large in
every row cost all their groups precision, and columns that are small are lost. Sinkhorn's factors
make the columns of a set of linears alike in their share of each row's squares.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import LazyTensor
from ctcli.models.architecture import Architecture
from ctcli.rewrites.equalizing.nodes import (
    Applied,
    EqualizedWeight,
    factors_of,
    folded,
    generated,
    of_rows,
    scaled,
)
from ctcli.rewrites.equalizing.options import EqualizeOptions
from ctcli.rewrites.equalizing.parts import PARTS, Found, Scaling, find
from ctcli.rewrites.surgery.fuse_norms import SurgeryReport
from ctcli.rewrites.surgery.surgery import architecture_of, editable

_WORDS = {"norms": "norms", "up and down": "MLPs", "v and o": "attention blocks"}


def equalize(checkpoint: Checkpoint, options: EqualizeOptions) -> tuple[Checkpoint, SurgeryReport]:
    """Scale columns, and divide what makes the activations that they are multiplied with.

    Raises:
        CtcliError: weights cannot be read, or nothing can be scaled exactly.
    """
    dense = editable(checkpoint)
    architecture = architecture_of(dense, options.parts)
    found = equalizable(dense, architecture)
    made = _Equalizing(dense, architecture, options.rounds).tensors(found.scalings)
    shards = tuple(
        replace(shard, tensors={name: made.get(name, t) for name, t in shard.tensors.items()})
        for shard in dense.shards
    )
    step = {"use": "equalize", **options.recipe}
    result = replace(dense, shards=shards, steps=(*dense.steps, step))
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    modules = {name.rpartition(".")[0] for name in made}
    changes = changes_of(found)
    family, before, after = architecture.family, checkpoint.nbytes, result.nbytes
    return result, SurgeryReport(family, changes, len(modules), False, before, after)


def equalizable(checkpoint: Checkpoint, architecture: Architecture) -> Found:
    """What of a checkpoint can be scaled.

    Raises:
        CtcliError: nothing can; gives the reason of each part.
    """
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    found = find(architecture, checkpoint.config, shapes)
    if not found.scalings:
        reasons = [f"{architecture.family}: {part}: {why}." for part, why in found.reasons.items()]
        raise CtcliError(reasons, "Quantize it without equalize.")
    return found


def changes_of(found: Found) -> tuple[tuple[str, str], ...]:
    """What is scaled, and what is left alone and why, for people."""
    rows: list[tuple[str, str]] = []
    for part in PARTS:
        if count := found.count(part):
            rows.append((part, f"{count} {_WORDS[part]}"))
        if reason := found.reasons.get(part):
            rows.append((f"left alone: {part}", reason))
    return tuple(rows)


class _Equalizing:
    """A checkpoint's tensors while it is found out what becomes of them."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture, rounds: int) -> None:
        self._stored = dict(checkpoint.tensors())
        self._offset = architecture.gain_offset
        self._rounds = rounds
        self._applied: dict[str, Applied] = defaultdict(Applied)
        self._made: dict[str, LazyTensor] = {}

    def tensors(self, scalings: list[Scaling]) -> dict[str, LazyTensor]:
        """What changes, by name."""
        for scaling in scalings:
            self._add(scaling)
        for name, applied in self._applied.items():
            self._made[name] = scaled(self._weight(name), applied)
        return self._made

    def _add(self, scaling: Scaling) -> None:
        weights = [self._weight(f"{module}.weight") for module in scaling.linears]
        size = scaling.rows.size if scaling.rows else 1
        factors = factors_of(weights, self._rounds, scaling.repeats, size)
        if scaling.norm:
            gain = self._weight(f"{scaling.norm.module}.weight")
            new, factors = folded(gain, factors, self._offset)
            self._made[f"{gain.module}.weight"] = generated(gain, new)
            self._apply_to_bias(gain.module, Applied(factors, divides=True))
        elif scaling.rows:
            module = scaling.rows.module
            name = f"{module}.weight"
            rows = of_rows(factors, scaling.repeats, scaling.rows, self._weight(name))
            self._applied[name] = replace(self._applied[name], rows=rows)
            self._apply_to_bias(module, Applied(factors=rows))
        for weight in weights:
            name = f"{weight.module}.weight"
            self._applied[name] = replace(self._applied[name], factors=factors)

    def _apply_to_bias(self, module: str, applied: Applied) -> None:
        name = f"{module}.bias"
        if name in self._stored and not self._weight(name).is_zero:
            self._applied[name] = applied

    def _weight(self, name: str) -> EqualizedWeight:
        return EqualizedWeight.of(name, self._stored[name])
