"""Edits of a matrix: a norm's gain, and maps of its columns and rows, in one pass and one rounding.

A linear computes y = W x. For a residual stream in rows, x' = x Q, its readers become W Q, and its
writers Q^T W (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ctcli.lazy.nodes import (
    Axis,
    Computed,
    Input,
    Node,
    Output,
    Shape,
    axis_of,
    matrix_shape,
    preferred_axis,
    step_key,
)
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.ops.dtypes import SHORT_FLOATS
from ctcli.rewrites.surgery.kernels import (
    AsFloat64,
    EditBlock,
    Map,
    Project,
    RowMap,
    ScaleAndRound,
)

if TYPE_CHECKING:
    pass

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

    @property
    def is_nothing(self) -> bool:
        """Whether a matrix stays as it is."""
        return not (self.gain or self.columns or self.rows)


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
    module: str, leaf: str, tensor: Exact, edit: Edit, arithmetic: Arithmetic, step: str
) -> Exact:
    """A matrix after an edit, not rounded.

    Args:
        module: its module.
        leaf: the tensor's name in the module.
        tensor: what is edited.
        edit: what happens to it.
        arithmetic: how to compute.
        step: the command, for the key.
    """
    if edit.is_nothing:
        return tensor
    shape = _matrix_of(leaf, tensor, edit)
    inputs = {leaf: Input(tensor, shape)}
    if edit.gain:
        inputs["gain"] = edit.gain.read
    granule = (
        math.lcm(*[each.granule for each in edit.rows]),
        math.lcm(*[each.block_size for each in edit.columns]),
    )
    tag = arithmetic.tag(tensor, edit)
    gain = (edit.gain.offset, edit.gain.divides) if edit.gain else None
    node = Node(
        key=step_key(module, leaf, tensor, step),
        module=module,
        shape=shape,
        inputs=inputs,
        outputs=_floats(leaf, tag, shape),
        kernel=EditBlock(
            leaf, tensor.spec.dtype, tag, gain, edit.columns, edit.rows, arithmetic.device
        ),
        granule=granule,
        axis=_axis(shape, granule, tensor),
    )
    return Computed(node, leaf)


@lru_cache(maxsize=256)
def _floats(leaf: str, tag: str, shape: Shape) -> Mapping[str, Output]:
    """What is made of the matrices of one shape: many of a model are alike."""
    return {leaf: Output(TensorSpec(tag, shape))}


def _axis(shape: Shape, granule: Shape, tensor: Exact) -> Axis:
    """The direction in which blocks of an edit are smallest."""
    down, across = tensor.node.together if isinstance(tensor, Computed) else (1, 1)
    return preferred_axis(shape, (math.lcm(granule[0], down), math.lcm(granule[1], across)))


def _matrix_of(leaf: str, tensor: Exact, edit: Edit) -> tuple[int, int]:
    """[rows, columns] that a tensor is edited as: maps of rows take a vector for a column."""
    shape = matrix_shape(tensor.spec.shape)
    if leaf == "bias" and not (edit.columns or edit.gain):
        return math.prod(shape), 1
    return shape


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


def rounded(module: str, leaf: str, tensor: Exact, spec: TensorSpec, device: str) -> Computed:
    """A matrix as a tensor, with the one rounding.

    Args:
        module: its module.
        leaf: the tensor's name in the module.
        tensor: what to write.
        spec: dtype and shape of the tensor.
        device: where to compute.
    """
    shape, tag = matrix_shape(tensor.spec.shape), tensor.spec.dtype
    inputs: Mapping[str, Input] = {leaf: Input(tensor, shape)}
    kernel = _rounding(leaf, tag, spec.dtype, device)
    if isinstance(tensor, Computed) and (below := _gain_alone(tensor)):
        # What only applies a gain rounds in the same pass.
        inputs = tensor.node.inputs
        kernel = replace(below, target=spec.dtype)
    node = Node(
        key=step_key(module, leaf, tensor, "round"),
        module=module,
        shape=shape,
        inputs=inputs,
        outputs={leaf: Output(spec, is_whole=len(spec.shape) == 1 and shape[0] == 1)},
        kernel=kernel,
        axis=axis_of(tensor),
        exact=tensor,
    )
    return Computed(node, leaf)


@lru_cache(maxsize=256)
def _rounding(leaf: str, tag: str, target: str, device: str) -> ScaleAndRound:
    return ScaleAndRound(leaf, tag, target, None, tag != "F64", device)


def _gain_alone(tensor: Computed) -> ScaleAndRound | None:
    """What a tensor is computed by, if that does no more than multiply by a gain."""
    edit = tensor.node.kernel
    if not isinstance(edit, EditBlock) or edit.columns or edit.rows or not edit.gain:
        return None
    offset, divides = edit.gain
    if divides:
        return None
    in_float32 = edit.target == "F32"
    return ScaleAndRound(edit.leaf, edit.tag, edit.target, offset, in_float32, edit.device)


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
