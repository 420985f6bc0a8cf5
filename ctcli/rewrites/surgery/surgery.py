"""Edits of many modules, collected, and the checkpoint that they make."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.reading import as_floats
from ctcli.lazy.known import widened
from ctcli.lazy.nodes import Computed, Exact, LazyTensor, Stacked, starting_point
from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.models.architecture import Architecture
from ctcli.models.config import table
from ctcli.models.mapped import resolve_mapping
from ctcli.models.mapping import ArchitectureMapping
from ctcli.models.resolve import resolve
from ctcli.ops.dtypes import DTYPES, FLOATS
from ctcli.rewrites.surgery.edits import Arithmetic, Edit, Gain, bias_of, edited
from ctcli.rewrites.surgery.kernels import Map, RowMap
from ctcli.rewrites.surgery.stacks import stacked, unstacked


@dataclass
class Surgery:
    """What is to be done to a checkpoint.

    Attributes:
        step: the command, for the keys of nodes.
        architecture: its parts.
        stored: its tensors, with the head's own weight if the head is to be untied.
        gains: norms to fuse, by the linear that reads them. A norm's bias that stays is edited,
            too, and goes by its tensor's name.
        columns: maps of columns, by module, in order.
        rows: maps of rows, by module, in order.
        neutral: norms whose gain becomes one, and whose bias, if it moves, zero.
        switched: linears that get a bias of zeros where they have none.
        added: new tensors by name, by the tensor that they go beside.
    """

    step: str
    architecture: Architecture
    stored: dict[str, LazyTensor]
    gains: dict[str, Gain] = field(default_factory=dict)
    columns: dict[str, list[Map]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, list[RowMap]] = field(default_factory=lambda: defaultdict(list))
    neutral: list[str] = field(default_factory=list)
    switched: tuple[str, ...] = ()
    added: dict[str, dict[str, LazyTensor]] = field(default_factory=lambda: defaultdict(dict))

    def edit(self, name: str) -> Edit:
        """All that happens to a module's weight, or to a norm's bias."""
        columns, rows = self.columns.get(name, ()), self.rows.get(name, ())
        turned = name in self.architecture.transposed
        return Edit(self.gains.get(name), tuple(columns), tuple(rows), turned)

    @cached_property
    def modules(self) -> list[str]:
        """Every module that changes; it is asked for once all edits are known."""
        names = [*self.neutral, *self.gains, *self.columns, *self.rows, *self.switched]
        if self.architecture.tied:
            names.append(self.architecture.lm_head)
        return [name for name in dict.fromkeys(names) if f"{name}.weight" in self.stored]

    def home(self, module: str) -> str:
        """The tensor beside which a module's tensors go that are new."""
        parts = self.architecture
        is_untied = module == parts.lm_head and parts.tied
        return f"{parts.token_embedding if is_untied else module}.weight"


def architecture_of(checkpoint: Checkpoint, mapping: ArchitectureMapping | None) -> Architecture:
    """The parts of a checkpoint: as declared for its family, or as a user describes them."""
    shapes = {name: tensor.spec.shape for name, tensor in checkpoint.tensors()}
    if mapping:
        return resolve_mapping(mapping, checkpoint.config, shapes)
    return resolve(checkpoint.config, shapes)


def begin(step: str, checkpoint: Checkpoint, architecture: Architecture, unties: bool) -> Surgery:
    """Nothing done yet.

    Args:
        step: the command.
        checkpoint: the source.
        architecture: its parts.
        unties: whether a tied head gets a weight of its own.
    """
    stored = unstacked(dict(checkpoint.tensors()), architecture.views)
    if unties and architecture.tied:
        embedding = stored[f"{architecture.token_embedding}.weight"]
        stored[f"{architecture.lm_head}.weight"] = embedding
    return Surgery(step, architecture, stored)


def editable(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with floats for weights, whatever it stores.

    Raises:
        CtcliError: weights cannot be read, are rotated online, or are stored in a dtype not to be
            computed with.
    """
    dense = as_floats(checkpoint)
    declared = table(table(dense.config.get("quantization_config")).get("transform_config"))
    if transforms := table(declared.get("config_groups")):
        raise CtcliError(
            f"{dense.origin.name}: it has online rotations already: {', '.join(transforms)}.",
            "Start from the checkpoint without them, and give all rotations at once.",
        )
    problems = [
        f"{name}: {spec.dtype} cannot be computed with."
        for name, spec in dense.specs.items()
        if name.endswith((".weight", ".bias")) and spec.dtype not in FLOATS
    ]
    if problems:
        raise CtcliError(problems, f"Store these in one of {', '.join(FLOATS)}.")
    return dense


def apply(
    checkpoint: Checkpoint, surgery: Surgery, arithmetic: Arithmetic, dtype: str | None
) -> Checkpoint:
    """The checkpoint with all edits.

    Args:
        checkpoint: the source.
        surgery: what to do.
        arithmetic: how to compute.
        dtype: safetensors tag that all floats get; None keeps each tensor's own.
    """
    operation = _Operation(surgery, arithmetic, dtype)
    made: dict[str, LazyTensor] = {}
    beside: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    specs, views = checkpoint.specs, surgery.architecture.views
    changed = ((surgery.home(module), operation.tensors(module)) for module in surgery.modules)
    for home, tensors in chain(changed, surgery.added.items()):
        for name, tensor in tensors.items():
            (made if name in specs or name in views else beside[home])[name] = tensor
    made |= operation.stacks(made, specs)
    shards = []
    for shard in checkpoint.shards:
        rewritten: dict[str, LazyTensor] = {}
        for name, tensor in shard.tensors.items():
            rewritten[name] = made.get(name) or operation.untouched(name, tensor)
            if name in beside:
                rewritten |= beside[name]
        shards.append(replace(shard, tensors=rewritten))
    config = _config(checkpoint.config, surgery, dtype)
    result = replace(checkpoint, shards=tuple(shards))
    return result if config == checkpoint.config else result.with_config(config)


@dataclass
class _Operation:
    """What becomes of each tensor."""

    surgery: Surgery
    arithmetic: Arithmetic
    dtype: str | None

    @cached_property
    def neutral(self) -> frozenset[str]:
        """The norms whose gain becomes one."""
        return frozenset(self.surgery.neutral)

    def tensors(self, module: str) -> dict[str, LazyTensor]:
        """A changed module's weight and bias, by name."""
        weight = self.surgery.stored[f"{module}.weight"]
        if module in self.neutral:
            is_one = not self.surgery.architecture.gain_offset
            made, bias = self._constant(weight.spec, is_one), self._norm_bias(module)
        else:
            made, bias = self._linear(module, weight), self._linear_bias(module, weight)
        return {f"{module}.weight": made, **({f"{module}.bias": bias} if bias else {})}

    def untouched(self, name: str, tensor: LazyTensor) -> LazyTensor:
        """A tensor that no edit concerns, in the dtype asked for."""
        if self._tag(tensor.spec) == tensor.spec.dtype:
            return tensor
        if isinstance(tensor, Known):
            return widened(tensor)
        if isinstance(tensor, Stacked):
            parts = [
                self._changed(f"{name}.{number}", _exact(part), Edit(), part.spec)
                for number, part in enumerate(tensor.parts)
            ]
            return Stacked(TensorSpec(self._tag(tensor.spec), tensor.spec.shape), tuple(parts))
        return self._changed(name, _exact(tensor), Edit(), tensor.spec)

    def stacks(
        self, made: Mapping[str, LazyTensor], specs: Mapping[str, TensorSpec]
    ) -> dict[str, LazyTensor]:
        """The tensors of several matrices, where these changed."""
        parts: dict[str, list[LazyTensor]] = defaultdict(list)
        for name, view in self.surgery.architecture.views.items():
            if name in made:
                parts[view.tensor].append(made[name])
        return {
            tensor: stacked(specs[tensor], self._tag(specs[tensor]), each)
            for tensor, each in parts.items()
        }

    def _linear(self, module: str, weight: LazyTensor) -> LazyTensor:
        edit = self.surgery.edit(module)
        return self._changed(f"{module}.weight", _exact(weight), edit, weight.spec)

    def _linear_bias(self, module: str, weight: LazyTensor) -> LazyTensor | None:
        name, gain = f"{module}.bias", self.surgery.gains.get(module)
        own = self.surgery.stored.get(name)
        if own is None and module not in self.surgery.switched and not (gain and gain.bias):
            return None
        turned = module in self.surgery.architecture.transposed
        spec = own.spec if own else TensorSpec(weight.spec.dtype, (weight.spec.shape[turned],))
        added = starting_point(own) if own else None  # an earlier step's is zero, and stays it
        if gain and gain.bias:
            device = self.arithmetic.device
            start, step = _exact(weight), self.surgery.step
            bias: Exact = bias_of(module, start, gain, added, device, step, turned)
        elif added:
            bias = added
        else:
            return self._constant(spec)
        return self._changed(name, bias, Edit(rows=self.surgery.edit(module).rows), spec)

    def _norm_bias(self, module: str) -> LazyTensor | None:
        name = f"{module}.bias"
        bias = self.surgery.stored.get(name)
        if bias is None:
            return None
        norms = self.surgery.architecture.norms
        if not any(norm.module == module and norm.bias == "norm" for norm in norms):
            return self._constant(bias.spec)
        return self._changed(name, _exact(bias), self.surgery.edit(name), bias.spec)

    def _changed(self, name: str, tensor: Exact, edit: Edit, spec: TensorSpec) -> Computed:
        tag, arithmetic = self._tag(spec), self.arithmetic
        return edited(name, tensor, edit, spec, tag, arithmetic, self.surgery.step)

    def _constant(self, spec: TensorSpec, is_one: bool = False) -> LazyTensor:
        """Ones or zeros; as their bytes are known, a further step sees that nothing is to do."""
        own = TensorSpec(self._tag(spec), spec.shape)
        one = DTYPES[own.dtype].one
        return Known(own, one * math.prod(spec.shape) if is_one else bytes(own.nbytes))

    def _tag(self, spec: TensorSpec) -> str:
        return self.dtype if self.dtype and spec.dtype in FLOATS else spec.dtype


def _exact(tensor: LazyTensor) -> Exact:
    found = starting_point(tensor)
    assert found, "what is quantized was refused"
    return found


def _config(config: Mapping[str, Any], surgery: Surgery, dtype: str | None) -> dict[str, Any]:
    """config.json as it has to be now; what stands in nested parts changes there, too."""
    architecture = surgery.architecture
    new: dict[str, Any] = {}
    # Where config.json does not say it, the default of some classes is to tie.
    changes = architecture.lm_head in surgery.modules
    ties = architecture.tied or config.get("tie_word_embeddings", changes)
    if ties and f"{architecture.lm_head}.weight" in surgery.stored:
        new["tie_word_embeddings"] = False
    if surgery.switched and architecture.bias_switch:
        new[architecture.bias_switch.key] = True
    if dtype:
        new |= dict.fromkeys(("dtype", "torch_dtype"), DTYPES[dtype].torch_name)
    parts = {
        key: {**part, **{k: v for k, v in new.items() if k in part}}
        for key, part in config.items()
        if isinstance(part, Mapping) and key.endswith("_config")
    }
    own = {k: v for k, v in new.items() if k in config or k == "tie_word_embeddings"}
    return {**config, **parts, **own}
