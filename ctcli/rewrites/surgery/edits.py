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
    Exact,
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
    Round,
    RowMap,
)

_LABEL = "a norm or a bias"


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

    @cached_property
    def looks(self) -> tuple[float, bool, bool]:
        """What an edit is told of it: offset, whether it divides, whether it has 16 bits."""
        return self.offset, self.divides, _is_short(self.weight)


class Edit(NamedTuple):
    """What happens to a matrix: its columns times a gain, then the maps."""

    gain: Gain | None = None
    columns: tuple[Map, ...] = ()
    rows: tuple[RowMap, ...] = ()
    transposed: bool = False  # the matrix is stored [in, out]


class Arithmetic(NamedTuple):
    """How edits are computed.

    Attributes:
        precision: `float32` or `float64`; `auto` is float32 for tensors of 16-bit floats, float64
            for wider ones; `exact` is float64, or float32 where that gives the same.
        device: where to compute.
    """

    precision: Literal["exact", "auto", "float32", "float64"]
    device: str

    def tag(self, dtype: str, *, is_one_product: bool) -> str:
        """Safetensors tag of the floats in which an edit is computed: F32 or F64.

        In float32 no bit of a product of two 16-bit floats is lost before the last rounding (below
        2**-126, the last one may be): it has at most 22 significant bits, and float32 has 24.

        Args:
            dtype: tag of the tensor in the source.
            is_one_product: whether the edit is no more than such products.
        """
        is_narrow = {
            "exact": is_one_product,
            "auto": dtype in SHORT_FLOATS,
            "float32": True,
            "float64": False,
        }
        return "F32" if is_narrow[self.precision] else "F64"


def _is_short(tensor: Exact) -> bool:
    return isinstance(tensor, Stored) and tensor.spec.dtype in SHORT_FLOATS


def edited(
    name: str,
    tensor: Exact,
    edit: Edit,
    spec: TensorSpec,
    target: str,
    arithmetic: Arithmetic,
    step: str,
) -> Computed:
    """A matrix after an edit, with the one rounding.

    Args:
        name: of the tensor.
        tensor: what is edited.
        edit: what happens to it, perhaps nothing.
        spec: what the tensor is in the source; the result has its shape.
        target: safetensors tag of the result.
        arithmetic: how to compute.
        step: the command, for the key.
    """
    module, _, leaf = name.rpartition(".")
    gain, read = edit.gain, tensor.spec
    alike = _alike(
        leaf,
        (read.dtype, read.shape, _is_short(tensor)),
        tensor.node.together if isinstance(tensor, Computed) else (1, 1),
        gain.looks if gain else None,
        edit.columns,
        edit.rows,
        (spec.dtype, spec.shape, target),
        arithmetic,
        edit.transposed,
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
    kernel: EditAndRound | Round
    outputs: Mapping[str, Output]
    before: Unrounded | None


@lru_cache(maxsize=1024)
def _alike(
    leaf: str,
    tensor: tuple[str, tuple[int, ...], bool],
    together: Shape,
    gain: tuple[float, bool, bool] | None,
    columns: tuple[Map, ...],
    rows: tuple[RowMap, ...],
    result: tuple[str, tuple[int, ...], str],
    arithmetic: Arithmetic,
    transposed: bool,
) -> _Alike:
    """See `edited`; the tensor, the gain and the result by what there is to know of them."""
    (dtype, read, is_short), (own, made, target) = tensor, result
    shape, device = matrix_shape(read), arithmetic.device
    if leaf == "bias" and not (columns or gain):  # maps of rows take a vector for a column
        shape = math.prod(shape), 1
    granule = (
        math.lcm(*[each.granule for each in rows]),
        math.lcm(*[each.block_size for each in columns]),
    )
    granule = granule[::-1] if transposed else granule
    down, across = (math.lcm(*each) for each in zip(granule, together, strict=True))
    axis = preferred_axis(shape, (down, across))
    is_whole = len(made) == 1 and shape[0] == 1
    outputs = {leaf: Output(TensorSpec(target, made), is_whole)}
    if not (gain or columns or rows):
        kernel = Round(leaf, dtype, target, device)
        return _Alike(shape, granule, axis, kernel, outputs, None)
    is_one_product = is_short and not (columns or rows)
    if gain:
        is_one_product = is_one_product and gain[2] and not gain[0]
    tag = arithmetic.tag(own, is_one_product=is_one_product)
    scale = gain[:2] if gain else None
    edit = EditBlock(leaf, dtype, tag, scale, columns, rows, device, transposed)
    before = Unrounded("", {leaf: Output(TensorSpec(tag, shape))}, edit)
    return _Alike(shape, granule, axis, EditAndRound(edit, target), outputs, before)


def bias_of(
    module: str,
    weight: Exact,
    gain: Gain,
    bias: Exact | None,
    device: str,
    step: str,
    transposed: bool = False,
) -> Computed:
    """A linear's bias [rows, 1] that takes in the bias of the norm it reads: W b_norm + b.

    Args:
        module: the linear.
        weight: W before the norm's gain goes into it.
        gain: the norm's, whose bias moves.
        bias: the linear's own, [rows].
        device: where to compute.
        step: the command, for the key.
        transposed: whether W is stored [in, out].
    """
    assert gain.bias, "the norm has a bias that moves"
    stored = matrix_shape(weight.spec.shape)
    rows, columns = stored[::-1] if transposed else stored
    inputs = {
        "weight": Input(weight, stored, "transposed" if transposed else "along"),
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
        kernel=Project(weight.spec.dtype, device),
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
