"""The nodes of equalizing: factors as values, and the tensors that they scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from ctcli.lazy.nodes import (
    COLUMNS,
    Computed,
    Input,
    Kernel,
    LazyTensor,
    Node,
    Output,
    Unrounded,
    axis_of,
    matrix_shape,
    starting_point,
    step_key,
)
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.models.architecture import HeadRows
from ctcli.ops.dtypes import SHORT_FLOATS
from ctcli.rewrites.equalizing.kernels import (
    Balance,
    ColumnSums,
    Divide,
    Factors,
    Generated,
    OfRows,
    Ratio,
    RowSums,
    Scale,
)
from ctcli.rewrites.surgery.edits import vector
from ctcli.rewrites.surgery.kernels import AsFloat64

Readable = Stored | Computed | Known
_STEP, _FACTORS = "equalize", "factors"


@dataclass(frozen=True)
class EqualizedWeight:
    """A tensor of a module, as it is before it is rounded.

    Attributes:
        module: the module.
        leaf: the tensor's name in it.
        spec: of the tensor.
        exact: what a further step starts from.
    """

    module: str
    leaf: str
    spec: TensorSpec
    exact: Readable

    @classmethod
    def of(cls, name: str, tensor: LazyTensor) -> EqualizedWeight:
        """A checkpoint's tensor, which is not quantized."""
        module, _, leaf = name.rpartition(".")
        found = tensor if isinstance(tensor, Known) else starting_point(tensor)
        assert found, "what is quantized was refused"
        return cls(module, leaf, tensor.spec, found)

    def key(self, step: str) -> str:
        """A key for what a step makes of it."""
        return step_key(self.module, self.leaf, self.exact, step)

    @property
    def is_zero(self) -> bool:
        """Whether it is known to hold zeros alone."""
        return isinstance(self.exact, Known) and not any(self.exact.content)

    def value(self) -> Node:
        """All of a vector, float64 [n]."""
        if isinstance(self.exact, Known):
            return _known(self.module, self.leaf, self.exact)
        return vector(self.module, self.leaf, self.exact)


@dataclass(frozen=True)
class Applied:
    """What happens to a tensor: values by which it is scaled.

    Attributes:
        factors: of the columns.
        divides: whether columns are divided by them.
        rows: of the rows.
    """

    factors: Node | None = None
    divides: bool = False
    rows: Node | None = None


def factors_of(weights: Sequence[EqualizedWeight], rounds: int, repeats: int, size: int) -> Node:
    """The factors of the columns that some linears share: a value, float64 [columns].

    Args:
        weights: of the linears, [rows, columns] each.
        rounds: how many rounds of Sinkhorn's scaling.
        repeats: neighbouring heads of columns that get the same factors.
        size: columns of a head.
    """
    first, columns = weights[0], weights[0].spec.shape[1]
    balance: Node | None = None
    for number in range(1, rounds + 1):
        inputs = {weight.module: _read(_sums(weight, number, balance)) for weight in weights}
        if number < rounds:
            key = first.key(f"balance-{number}")
            balance = _value(first, key, inputs, Balance(), columns)
    return _value(first, first.key(_FACTORS), inputs, Factors(repeats, size), columns)


def folded(gain: EqualizedWeight, factors: Node, offset: float) -> tuple[Node, Node]:
    """A norm's gain after division, and what the columns behind it are multiplied by.

    Args:
        gain: the norm's.
        factors: d, as `factors_of` finds them.
        offset: what the model adds to a stored gain.

    Returns:
        Two values, float64 [columns]: the new gain as it is stored; and the old one over it.
    """
    size, key = gain.spec.shape[-1], _beside(gain, factors)
    inputs = {"gain": _read(gain.value()), "factors": _read(factors)}
    new = _value(gain, f"{key}gain", inputs, Divide(gain.spec.dtype, offset), size)
    both = {"gain": _read(gain.value()), "new": _read(new)}
    return new, _value(gain, f"{key}ratio", both, Ratio(offset), size)


def of_rows(factors: Node, repeats: int, heads: HeadRows, weight: EqualizedWeight) -> Node:
    """What the rows of a linear are multiplied by, 1 / d: a value, float64 [rows].

    Args:
        factors: d.
        repeats: see `factors_of`.
        heads: the rows that columns stand for.
        weight: the linear's, [rows, columns].
    """
    rows = weight.spec.shape[0]
    kernel = OfRows(heads, repeats, rows)
    return _value(weight, weight.key("rows"), {"factors": _read(factors)}, kernel, rows)


def scaled(weight: EqualizedWeight, applied: Applied) -> Computed:
    """A matrix, or a vector taken for a row, scaled; rounded once to its dtype."""
    exact, shape = weight.exact, matrix_shape(weight.spec.shape)
    inputs = {weight.leaf: Input(exact, shape)}
    if applied.factors:
        inputs["factors"] = _read(applied.factors)
    if applied.rows:
        inputs["rows"] = _read(applied.rows)
    wide = "F32" if weight.spec.dtype in SHORT_FLOATS else "F64"
    settings = weight.leaf, exact.spec.dtype, applied.divides, wide == "F32"
    unrounded = _outputs(weight.leaf, TensorSpec(wide, shape))
    node = Node(
        key=weight.key(f"{_STEP}/round"),
        module=weight.module,
        shape=shape,
        inputs=inputs,
        outputs=_rounded(weight),
        kernel=_scale(*settings, weight.spec.dtype, True),
        axis=axis_of(exact),
        before=Unrounded("", unrounded, _scale(*settings, wide, False)),
    )
    return Computed(node, weight.leaf)


def generated(gain: EqualizedWeight, new: Node) -> Computed:
    """A norm's new gain as a tensor.

    Args:
        gain: the norm's own.
        new: see `folded`.
    """
    shape = matrix_shape(gain.spec.shape)
    unrounded = Node(
        key=f"{new.key.removesuffix('gain')}{_STEP}",
        module=gain.module,
        shape=shape,
        inputs={"new": _read(new)},
        outputs=_outputs("weight", TensorSpec("F64", shape)),
        kernel=Generated(),
    )
    exact = Computed(unrounded, "weight")
    node = Node(
        key=step_key(gain.module, "weight", exact, "round"),
        module=gain.module,
        shape=shape,
        inputs={"weight": Input(exact, shape)},
        outputs=_rounded(gain),
        kernel=_scale("weight", "F64", False, False, gain.spec.dtype, True),
        before=exact,
    )
    return Computed(node, "weight")


def _rounded(weight: EqualizedWeight) -> Mapping[str, Output]:
    shape = weight.spec.shape
    return {weight.leaf: Output(weight.spec, len(shape) == 1 and matrix_shape(shape)[0] == 1)}


def _sums(weight: EqualizedWeight, number: int, balance: Node | None) -> Node:
    """What a linear's columns add up to in a round, [columns]."""
    shape, axis, tag = (
        matrix_shape(weight.spec.shape),
        axis_of(weight.exact),
        weight.exact.spec.dtype,
    )
    inputs = {"weight": Input(weight.exact, shape)}
    if balance:
        inputs["factors"] = _read(balance)
    if axis == COLUMNS:  # no block has whole rows
        rows = Node(
            key=weight.key(f"rows-{number}"),
            module=weight.module,
            shape=shape,
            inputs=inputs,
            outputs=_vector(shape[0]),
            kernel=RowSums(tag),
            axis=axis,
            combine="sum",
        )
        inputs = {**inputs, "rows": _read(rows)}
    return Node(
        key=weight.key(f"columns-{number}"),
        module=weight.module,
        shape=shape,
        inputs=inputs,
        outputs=_vector(shape[1]),
        kernel=ColumnSums(tag),
        axis=axis,
        combine="sum",
    )


@cache
def _known(module: str, leaf: str, tensor: Known) -> Node:
    """A vector whose elements are known, such as the gain of a norm that was fused."""
    shape = matrix_shape(tensor.spec.shape)
    inputs = {leaf: Input(tensor, shape)}
    kernel = AsFloat64(leaf, tensor.spec.dtype)
    key, outputs = f"{module}/{leaf}/known", _vector(shape[1])
    return Node(key, module, shape, inputs, outputs, kernel, combine="sum")


def _beside(gain: EqualizedWeight, factors: Node) -> str:
    """The beginning of keys for a norm: the gain may be known, but what reads it has a history."""
    steps = factors.key.removeprefix(f"{factors.module}/weight/").removesuffix(_FACTORS)
    return f"{gain.module}/{gain.leaf}/{steps}"


def _value(
    weight: EqualizedWeight, key: str, inputs: Mapping[str, Input], kernel: Kernel, size: int
) -> Node:
    """A value that follows from others."""
    return Node(key, weight.module, (1, 1), inputs, _vector(size), kernel, combine="sum")


def _read(node: Node) -> Input:
    return Input(Computed(node, "value"), (1, 1), "whole", label="a norm or a bias")


@lru_cache(maxsize=256)
def _vector(size: int) -> Mapping[str, Output]:
    return {"value": Output(TensorSpec("F64", (size,)), is_whole=True)}


@lru_cache(maxsize=256)
def _outputs(leaf: str, spec: TensorSpec) -> Mapping[str, Output]:
    return {leaf: Output(spec)}


@lru_cache(maxsize=256)
def _scale(
    leaf: str, tag: str, divides: bool, in_float32: bool, target: str, refuses: bool
) -> Scale:
    return Scale(leaf, tag, target, divides, in_float32, refuses)
