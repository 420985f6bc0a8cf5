"""Edits of a matrix: a norm's gain, and maps of its columns and rows, in one pass and one rounding.

A linear computes y = W x. For a residual stream in rows, x' = x Q, its readers become W Q, and its
writers Q^T W (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal, NamedTuple

from ctcli.lazy.nodes import (
    Axis,
    Computed,
    Input,
    Node,
    Output,
    Shape,
    Unrounded,
    matrix_shape,
    preferred_axis,
    step_key,
)
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.ops.dtypes import SHORT_FLOATS
from ctcli.rewrites.surgery.kernels import (
    AsFloat64,
    EditAndRound,
    EditBlock,
    Map,
    Project,
    RowMap,
    ScaleAndRound,
)

_LABEL = "a norm or a bias"
Exact = Stored | Computed


@dataclass(frozen=True)
class Gain:
    """What a norm does to its normalised input before linears read it: n -> n * gain + bias.

    Attributes:
        module: the norm.
        weight: the stored gain, [n].
        offset: what the model adds to it.
        bias: [n], if it moves into the linears' biases.
        divides: for a norm's own bias that stays: it is divided by the gain.
    """

    module: str
    weight: Exact
    offset: float
    bias: Exact | None = None
    divides: bool = False

    @cached_property
    def read(self) -> Input:
        """How an edit reads it."""
        return _whole(vector(self.module, "weight", self.weight))


class Edit(NamedTuple):
    """What happens to a matrix: its columns times a gain, then the maps."""

    gain: Gain | None = None
    columns: tuple[Map, ...] = ()
    rows: tuple[RowMap, ...] = ()


@dataclass(frozen=True)
class Arithmetic:
    """How edits are computed.

    Attributes:
        precision: `float32` or `float64`; `auto` is float32 for tensors of 16-bit floats, float64
            for wider ones; `exact` is float64, or float32 where that gives the same.
        device: where to compute.
    """

    precision: Literal["exact", "auto", "float32", "float64"]
    device: str

    def of(self, tensor: TensorSpec) -> Arithmetic:
        """With `auto` decided for a tensor."""
        if self.precision != "auto":
            return self
        return Arithmetic("float32" if tensor.dtype in SHORT_FLOATS else "float64", self.device)

    def tag(self, tensor: Exact, edit: Edit) -> str:
        """Safetensors tag of the floats in which an edit is computed: F32 or F64.

        In float32 no bit of a product of two 16-bit floats is lost before the last rounding (below
        2**-126, the last one may be): it has at most 22 significant bits, and float32 has 24.
        """
        if self.precision != "exact":
            return "F32" if self.precision == "float32" else "F64"
        gain, parts = edit.gain, [tensor]
        is_plain = not (edit.columns or edit.rows)
        if gain:
            parts.append(gain.weight)
            is_plain = is_plain and not gain.offset
        stored = all(isinstance(t, Stored) and t.spec.dtype in SHORT_FLOATS for t in parts)
        return "F32" if is_plain and stored else "F64"


def edited(
    module: str,
    leaf: str,
    tensor: Exact,
    edit: Edit,
    spec: TensorSpec,
    arithmetic: Arithmetic,
    step: str,
) -> Computed:
    """A matrix after an edit, with the one rounding.

    Args:
        module: its module.
        leaf: the tensor's name in the module.
        tensor: what is edited.
        edit: what happens to it, perhaps nothing.
        spec: dtype and shape of the result.
        arithmetic: how to compute.
        step: the command, for the key.
    """
    gain = edit.gain
    alike = _alike(
        leaf,
        tensor.spec,
        tensor.node.together if isinstance(tensor, Computed) else (1, 1),
        (gain.offset, gain.divides) if gain else None,
        edit.columns,
        edit.rows,
        arithmetic.tag(tensor, edit),
        spec,
        arithmetic.device,
    )
    inputs = {leaf: Input(tensor, alike.shape)}
    if gain:
        inputs["gain"] = gain.read
    node = Node(
        key=step_key(module, leaf, tensor, f"{step}/round" if alike.before else "round"),
        module=module,
        shape=alike.shape,
        inputs=inputs,
        outputs=alike.outputs,
        kernel=alike.kernel,
        granule=alike.granule,
        axis=alike.axis,
        before=alike.before or tensor,
    )
    return Computed(node, leaf)


class _Alike(NamedTuple):
    """What tensors of one shape with one edit have in common: many of a model are alike.

    Attributes:
        shape: [rows, columns] that they are edited as.
        granule: rows and columns that belong together for the edit.
        axis: the direction in which blocks of it are smallest.
        kernel: edits and rounds.
        outputs: the tensor.
        before: it without the rounding; None: nothing is done to it but that.
    """

    shape: Shape
    granule: Shape
    axis: Axis
    kernel: EditAndRound | ScaleAndRound
    outputs: Mapping[str, Output]
    before: Unrounded | None


@lru_cache(maxsize=1024)
def _alike(
    leaf: str,
    tensor: TensorSpec,
    together: Shape,
    gain: tuple[float, bool] | None,
    columns: tuple[Map, ...],
    rows: tuple[RowMap, ...],
    tag: str,
    spec: TensorSpec,
    device: str,
) -> _Alike:
    """See `edited`; `tag` is that of the floats to compute in."""
    shape = matrix_shape(tensor.shape)
    if leaf == "bias" and not (columns or gain):  # maps of rows take a vector for a column
        shape = math.prod(shape), 1
    granule = (
        math.lcm(*[each.granule for each in rows]),
        math.lcm(*[each.block_size for each in columns]),
    )
    axis = preferred_axis(
        shape, (math.lcm(granule[0], together[0]), math.lcm(granule[1], together[1]))
    )
    outputs = {leaf: Output(spec, is_whole=len(spec.shape) == 1 and shape[0] == 1)}
    if not (gain or columns or rows):
        kernel = ScaleAndRound(leaf, tensor.dtype, spec.dtype, None, tensor.dtype != "F64", device)
        return _Alike(shape, granule, axis, kernel, outputs, None)
    edit = EditBlock(leaf, tensor.dtype, tag, gain, columns, rows, device)
    before = Unrounded("", {leaf: Output(TensorSpec(tag, shape))}, edit)
    both = _gain_and_round(edit, spec.dtype) or EditAndRound(edit, spec.dtype)
    return _Alike(shape, granule, axis, both, outputs, before)


def _gain_and_round(edit: EditBlock, target: str) -> ScaleAndRound | None:
    """An edit that does no more than multiply by a gain, with the rounding, in one pass."""
    if edit.columns or edit.rows or not edit.gain or edit.gain[1]:
        return None
    return ScaleAndRound(
        edit.leaf, edit.tag, target, edit.gain[0], edit.target == "F32", edit.device
    )


def bias_of(
    module: str,
    weight: Exact,
    gain: Gain,
    bias: Exact | None,
    arithmetic: Arithmetic,
    step: str,
) -> Computed:
    """A linear's bias [rows, 1] that takes in the bias of the norm it reads: W b_norm + b.

    Args:
        module: the linear.
        weight: W before the norm's gain goes into it.
        gain: the norm's, whose bias moves.
        bias: the linear's own, [rows].
        arithmetic: how to compute.
        step: the command, for the key.
    """
    assert gain.bias, "the norm has a bias that moves"
    rows, columns = matrix_shape(weight.spec.shape)
    inputs = {
        "weight": Input(weight, (rows, columns)),
        "norm": _whole(vector(gain.module, "bias", gain.bias)),
    }
    if bias:
        inputs["own"] = _whole(vector(module, "bias", bias))
    node = Node(
        key=step_key(module, "bias", weight, f"{step}-bias"),
        module=module,
        shape=(rows, columns),
        inputs=inputs,
        outputs={"bias": Output(TensorSpec("F64", (rows, 1)))},
        kernel=Project(weight.spec.dtype, arithmetic.device),
        granule=(1, columns),
    )
    return Computed(node, "bias")


@cache
def vector(module: str, leaf: str, tensor: Exact) -> Node:
    """All of a vector [n] as a value: float64."""
    shape = matrix_shape(tensor.spec.shape)
    return Node(
        key=step_key(module, leaf, tensor, "value"),
        module=module,
        shape=shape,
        inputs={leaf: Input(tensor, shape)},
        outputs={"value": Output(TensorSpec("F64", (math.prod(shape),)), is_whole=True)},
        kernel=AsFloat64(leaf, tensor.spec.dtype),
        combine="sum",
    )


def _whole(node: Node) -> Input:
    return Input(Computed(node, "value"), (1, 1), "whole", label=_LABEL)
