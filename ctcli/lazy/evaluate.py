"""The one evaluator: computes a span of a node by pulling the same span of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ctcli.lazy.cut import cut
from ctcli.lazy.known import known_array
from ctcli.lazy.nodes import COLUMNS, Axis, Computed, Input, LazyTensor, Node, Where
from ctcli.lazy.tensors import Known, Stored, TensorSpec

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks


class Reader(Protocol):
    """Reads stored matrices."""

    def read(self, tensor: Stored, axis: Axis, start: int, stop: int) -> Block:
        """Rows (columns) of a tensor of two dimensions; valid until the same tensor is read again.

        Raises:
            CtcliError: they cannot be read.
        """


class Yielded(NamedTuple):
    """What is to be written at once.

    Attributes:
        start: the first row (column) of the node.
        outputs: those of each output, by name.
        measures: what was measured on each block.
    """

    start: int
    outputs: Blocks
    measures: list[Sequence[Any]]


@dataclass(frozen=True)
class Evaluator:
    """Computes spans of nodes, on one thread.

    Attributes:
        reader: where stored blocks come from.
        values: what nodes read whole, by the key of the node that computed it.
    """

    reader: Reader
    values: Mapping[str, Block]

    def compute(self, node: Node, start: int, stop: int) -> Iterator[Yielded]:
        """Compute rows (columns) of a node, a few after the other; columns a window at once.

        Raises:
            CtcliError: something cannot be read.
            NonFiniteError: a kernel met NaN or infinities.
        """
        for first, made in self._windows(node, start, stop):
            yield Yielded(first, _joined(node, made), [measured for _, measured in made])

    def value(self, node: Node, start: int, stop: int) -> Block:
        """Compute what rows (columns) of a node that is one small value add to it."""
        assert node.combine, "it is a value"
        (name,) = node.outputs
        made = (part for _, parts in self._windows(node, start, stop) for part, _ in parts)
        return combined([outputs[name] for outputs in made], node.combine)

    def _windows(
        self, node: Node, start: int, stop: int
    ) -> Iterator[tuple[int, list[tuple[Blocks, Sequence[Any]]]]]:
        """The first row, and the block, of each band; the first column of each window, and all."""
        how = cut(node)
        for first in range(start, stop, how.window):
            last = min(first + how.window, stop)
            pull = _Pull(self, how.axis, first, last)
            bands = (
                (at, pull.run(node, at, min(at + how.band, last)))
                for at in range(first, last, how.band)
            )
            if how.axis == COLUMNS:  # pieces of a file had better be long
                yield first, [made for _, made in bands]
            else:
                yield from ((at, [made]) for at, made in bands)


def combined(parts: Sequence[Block], how: str) -> Block:
    """Element-wise largest (NaN if one is) or sum of some arrays of one shape, in their order."""
    import numpy as np

    result = parts[0]
    for part in parts[1:]:
        result = np.maximum(result, part) if how == "max" else result + part
    return result


class _Pull:
    """One window: what is read of it by columns is read once, for all blocks in it."""

    def __init__(self, evaluator: Evaluator, axis: Axis, first: int, last: int) -> None:
        self._evaluator = evaluator
        self._axis = axis
        self._window = (first, last)
        self._columns: dict[Stored, Block] = {}
        self._transposed: dict[Stored, Block] = {}

    def run(self, node: Node, start: int, stop: int) -> tuple[Blocks, Sequence[Any]]:
        """Compute a block of a node."""
        return self._run(node, self._axis, (start, stop), self._window)

    def _run(
        self, node: Node, axis: Axis, span: tuple[int, int], window: tuple[int, int]
    ) -> tuple[Blocks, Sequence[Any]]:
        blocks = {
            name: self._pull(node, item, axis, span, window) for name, item in node.inputs.items()
        }
        return node.kernel(blocks, Where(axis, *span, node.shape))

    def _pull(
        self,
        node: Node,
        item: Input,
        axis: Axis,
        span: tuple[int, int],
        window: tuple[int, int],
    ) -> Block:
        if item.run == "whole":
            return self._whole(item.tensor)
        own = item.axis(axis)
        inner, outer = item.span(node, axis, *span), item.span(node, axis, *window)
        if item.run == "transposed" and own == COLUMNS and isinstance(item.tensor, Stored):
            return self._rows_of_columns(item, item.tensor, inner, outer)
        block = self._block(item, own, inner, outer)
        if item.columns and own != COLUMNS:
            block = block[:, slice(*item.columns)]
        return block if item.run == "along" else _transposed(block)

    def _rows_of_columns(
        self, item: Input, tensor: Stored, span: tuple[int, int], window: tuple[int, int]
    ) -> Block:
        """Columns of a stored tensor, transposed; all of the window at once."""
        if tensor not in self._transposed:
            columns = self._columns_of(item, tensor, *window)
            self._transposed[tensor] = _transposed(columns)
        first = window[0]
        return self._transposed[tensor][span[0] - first : span[1] - first]

    def _block(
        self, item: Input, axis: Axis, span: tuple[int, int], window: tuple[int, int]
    ) -> Block:
        """Rows (columns) of a tensor."""
        tensor, (start, stop) = item.tensor, span
        if isinstance(tensor, Computed):
            if tensor.spec.shape != item.shape:  # a row that is taken for a column
                length = tensor.node.shape[axis := tensor.node.axis]
                whole = self._run(tensor.node, axis, (0, length), (0, length))[0][tensor.output]
                return whole.reshape(item.shape)[start:stop]
            return self._run(tensor.node, axis, span, window)[0][tensor.output]
        if isinstance(tensor, Known):
            known = known_array(tensor).reshape(item.shape)
            return _contiguous(known[:, start:stop]) if axis == COLUMNS else known[start:stop]
        assert isinstance(tensor, Stored), "what is stacked is read part by part"
        if axis != COLUMNS:
            return self._evaluator.reader.read(_as_matrix(tensor, item), axis, start, stop)
        first, last = window
        if tensor not in self._columns:
            self._columns[tensor] = self._columns_of(item, tensor, first, last)
        return _contiguous(self._columns[tensor][:, start - first : stop - first])

    def _columns_of(self, item: Input, tensor: Stored, start: int, stop: int) -> Block:
        return self._evaluator.reader.read(_as_matrix(tensor, item), COLUMNS, start, stop)

    def _whole(self, tensor: LazyTensor) -> Block:
        if isinstance(tensor, Computed):
            return self._evaluator.values[tensor.node.key]
        assert isinstance(tensor, Known), "stored tensors are read whole through a node"
        return known_array(tensor)


def _as_matrix(tensor: Stored, item: Input) -> Stored:
    return Stored(TensorSpec(tensor.spec.dtype, item.shape), tensor.file, tensor.start)


def _contiguous(block: Block) -> Block:
    import numpy as np

    return np.ascontiguousarray(block)


def _transposed(block: Block) -> Block:
    import numpy as np

    from ctcli.ops.transposing import transpose

    found = np.empty(block.shape[::-1], block.dtype)
    transpose(_contiguous(block), found)
    return found


def _joined(node: Node, made: Sequence[tuple[Blocks, Sequence[Any]]]) -> Blocks:
    """The outputs of neighbouring blocks as those of one."""
    if len(made) == 1:
        return made[0][0]
    import numpy as np

    return {
        name: first
        if node.outputs[name].is_whole
        else np.concatenate([outputs[name] for outputs, _ in made], node.axis)
        for name, first in made[0][0].items()
    }
