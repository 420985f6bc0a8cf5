"""From a weight and a scheme to the node that computes the tensors which stand for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ctcli.lazy.nodes import (
    COLUMNS,
    Axis,
    Computed,
    Exact,
    Input,
    Node,
    Output,
    Shape,
    Where,
    axis_of,
    matrix_shape,
    step_key,
)
from ctcli.lazy.tensors import TensorSpec
from ctcli.schemes import format_of
from ctcli.schemes.family import Execution, Numerics

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks


@dataclass(frozen=True, eq=False)
class Quantizer:
    """How weights are quantized.

    Attributes:
        numerics: in numbers.
        execution: how to compute.
    """

    numerics: Numerics
    execution: Execution

    def __call__(self, module: str, weight: Exact, shared: Sequence[Input] = ()) -> Node:
        """The tensors that stand for one weight.

        Args:
            module: its module.
            weight: [rows, columns], not rounded.
            shared: the largest magnitudes in its fused set, for strategy tensor_group.
        """
        shape, axis = matrix_shape(weight.spec.shape), axis_of(weight)
        alike = _alike(self, weight.spec.dtype, shape, axis)
        inputs = {"weight": Input(weight, shape)}
        if alike.needs_range:
            inputs["range"] = value(_range_of(module, weight, self.numerics, self.execution))
        for number, each in enumerate(shared):
            inputs[f"largest {number}"] = each
        return Node(
            key=step_key(module, "weight", weight, "quantize"),
            module=module,
            shape=shape,
            inputs=inputs,
            outputs=alike.outputs,
            kernel=alike.kernel,
            granule=alike.granule,
            axis=axis,
        )


class _Alike(NamedTuple):
    """What weights of one dtype and shape have in common: many of a model are alike."""

    outputs: Mapping[str, Output]
    kernel: Quantize
    granule: Shape
    needs_range: bool


@lru_cache(maxsize=256)
def _alike(quantizer: Quantizer, tag: str, shape: Shape, axis: Axis) -> _Alike:
    numerics, scheme = quantizer.numerics, quantizer.numerics.scheme
    form = format_of(scheme)
    outputs = form.outputs(numerics, TensorSpec(numerics.dtype, shape))
    if scheme.weights.strategy == "channel" and axis == COLUMNS:
        outputs = {name: _whole_for_rows(output) for name, output in outputs.items()}
    kernel = Quantize(tag, numerics, quantizer.execution)
    needs_range = form.whole(scheme, axis == COLUMNS) == "range"
    return _Alike(outputs, kernel, form.granule(scheme), needs_range)


def largest_magnitude(module: str, weight: Exact, execution: Execution) -> Node:
    """max|w| over a weight: a value, [1] float32.

    Args:
        module: its module.
        weight: [rows, columns].
        execution: how to compute.
    """
    return _over(module, weight, "amax", _amax(weight.spec.dtype, execution), (1,))


def _whole_for_rows(output: Output) -> Output:
    """The first columns of a weight give all scales of its rows."""
    return replace(output, is_whole=output.is_whole or output.spec.shape[1] == 1)


def _range_of(module: str, weight: Exact, numerics: Numerics, execution: Execution) -> Node:
    """[-low, high] of the whole weight, or of each of its rows, as the observer has it."""
    rows = 1 if numerics.scheme.weights.strategy == "tensor" else weight.spec.shape[0]
    tag = weight.spec.dtype
    extremes = _over(module, weight, "range", Widest(tag, numerics, execution), (2, rows))
    search = format_of(numerics.scheme).search(numerics)
    if search is None:
        return extremes
    tried = (len(search.parts), rows)
    errors = _over(
        module, weight, "errors", SearchErrors(tag, numerics, execution), tried, extremes, "sum"
    )
    inputs = {"range": value(extremes), "errors": value(errors)}
    outputs = _value_outputs("F32", (2, rows))
    key = step_key(module, "weight", weight, "shrink")
    return Node(key, module, (1, 1), inputs, outputs, Shrink(search.parts), combine="max")


def _over(
    module: str,
    weight: Exact,
    step: str,
    kernel: Amax | Widest | SearchErrors,
    shape: tuple[int, ...],
    whole: Node | None = None,
    combine: str = "max",
) -> Node:
    """A value that takes a pass over a weight."""
    matrix = matrix_shape(weight.spec.shape)
    inputs = {"weight": Input(weight, matrix)}
    if whole:
        inputs["range"] = value(whole)
    dtype = "F32" if combine == "max" else "F64"
    return Node(
        key=step_key(module, "weight", weight, step),
        module=module,
        shape=matrix,
        inputs=inputs,
        outputs=_value_outputs(dtype, shape),
        kernel=kernel,
        axis=axis_of(weight),
        combine="max" if combine == "max" else "sum",
    )


@lru_cache(maxsize=256)
def _value_outputs(dtype: str, shape: tuple[int, ...]) -> Mapping[str, Output]:
    return {"value": Output(TensorSpec(dtype, shape), is_whole=True)}


@lru_cache(maxsize=16)
def _amax(tag: str, execution: Execution) -> Amax:
    return Amax(tag, execution)


def value(node: Node) -> Input:
    """How another node reads a value."""
    return Input(Computed(node, "value"), (1, 1), "whole")


@dataclass(frozen=True)
class Quantize:
    """Quantize rows (columns) of a weight, given the range of the whole where there is one.

    It measures the sums of squares of the error (of what a reader computes, in float32) and of the
    weight. Rows of several weights are quantized as those of one.

    Attributes:
        tag: safetensors tag of the blocks.
        numerics: how to quantize.
        execution: how to compute.
    """

    tag: str
    numerics: Numerics
    execution: Execution

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: the weight holds NaN or infinities, and that is not allowed.
        """
        outputs, (sums,) = self.stacked(blocks, where.shape, 1)
        return outputs, sums

    def stacked(self, blocks: Blocks, shape: Shape, count: int) -> tuple[Blocks, list[list[float]]]:
        """See `Stackable`."""
        return format_of(self.numerics.scheme).encode(
            blocks["weight"],
            self.tag,
            shape=shape,
            numerics=self.numerics,
            execution=self.execution,
            whole=_whole_of(blocks),
            count=count,
        )


def _whole_of(blocks: Blocks) -> Block | None:
    """What is known of the whole weight, or of its fused set: NaN if any of it is."""
    import numpy as np

    if "range" in blocks:
        return _low_and_high(blocks["range"])
    largest = [block for name, block in blocks.items() if name != "weight"]
    return np.maximum.reduce(largest) if largest else None


def _low_and_high(extremes: Block) -> Block:
    """[low, high] of [-low, high], which is what can be combined."""
    import numpy as np

    return np.stack((-extremes[0], extremes[1]))


@dataclass(frozen=True)
class Amax:
    """The largest magnitude, [1] float32."""

    tag: str
    execution: Execution

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        from ctcli.ops.backend import body

        return {"value": body(self.execution.device).largest(blocks["weight"], self.tag)}, ()


@dataclass(frozen=True)
class Widest:
    """[-low, high] of all of it, or of each row: [2, 1 or rows] float32."""

    tag: str
    numerics: Numerics
    execution: Execution

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        found = format_of(self.numerics.scheme).widest(
            blocks["weight"], self.tag, numerics=self.numerics, execution=self.execution
        )
        return {"value": found}, ()


@dataclass(frozen=True)
class SearchErrors:
    """The error of all of it, or of each row, for each range that is tried: float64."""

    tag: str
    numerics: Numerics
    execution: Execution

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        found = format_of(self.numerics.scheme).shrunk_errors(
            blocks["weight"],
            self.tag,
            numerics=self.numerics,
            execution=self.execution,
            whole=_low_and_high(blocks["range"]),
        )
        return {"value": found}, ()


@dataclass(frozen=True)
class Shrink:
    """The range with the least error.

    Attributes:
        parts: of the whole range, in the order of the errors.
    """

    parts: tuple[float, ...]

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        import numpy as np

        parts = np.array(self.parts, np.float32)
        return {"value": blocks["range"] * parts[blocks["errors"].argmin(0)]}, ()
