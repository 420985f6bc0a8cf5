"""Why a node was refused: what of its inputs, or of its result, is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ctcli.errors import CtcliError
from ctcli.lazy.cut import BLOCK_ELEMENTS
from ctcli.lazy.evaluate import Evaluator
from ctcli.lazy.nodes import ROWS, Computed, Input, Node
from ctcli.lazy.tensors import Stored, TensorSpec

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block


def refusal(node: Node, evaluator: Evaluator, hint: str) -> CtcliError:
    """The error for a node whose kernel met NaN or infinities: counts them all.

    Where what it reads has none, a value that goes into it has; or else the result, which does not
    fit its dtype or was divided by zero.

    Args:
        node: the node.
        evaluator: reads what it reads.
        hint: what to do next.
    """
    import numpy as np

    for name, stored, shape in _stored(node):
        tensor = Stored(TensorSpec(stored.spec.dtype, shape), stored.file, stored.start)
        blocks = _blocks(tensor, evaluator)
        count = sum(int((~np.isfinite(_floats(block, tensor))).sum()) for block in blocks)
        if count:
            problem = f".{name}: {count} of its values are NaN or infinite."
            return CtcliError(node.module + problem, hint)
    for item in _values(node):
        assert isinstance(item.tensor, Computed), "known values are finite"
        if item.label and not np.isfinite(evaluator.values[item.tensor.node.key]).all():
            problem = f": {item.label} that goes into it holds NaN or infinite values."
            return CtcliError(node.module + problem, hint)
    dtype = next(iter(node.outputs.values())).spec.dtype if node.exact else "F32"
    return CtcliError(f"{node.module}: the result is not finite, or too large for {dtype}.", hint)


def _stored(node: Node) -> Iterator[tuple[str, Stored, tuple[int, int]]]:
    """The stored tensors that a node runs along, with the names of the inputs they are."""
    for name, item in node.inputs.items():
        if item.run == "whole":
            continue
        if isinstance(item.tensor, Computed):
            yield from _stored(item.tensor.node)
        elif isinstance(item.tensor, Stored):
            yield name, item.tensor, item.shape


def _values(node: Node) -> Iterator[Input]:
    """The values that a node and those below it read whole."""
    for item in node.inputs.values():
        if item.run == "whole":
            yield item
        elif isinstance(item.tensor, Computed):
            yield from _values(item.tensor.node)


def _blocks(tensor: Stored, evaluator: Evaluator) -> Iterator[Block]:
    rows, columns = tensor.spec.shape
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield evaluator.reader.read(tensor, ROWS, start, min(start + step, rows))


def _floats(block: Block, tensor: Stored) -> Block:
    import numpy as np

    from ctcli.ops.bits import to_floats

    if tensor.spec.dtype not in ("BF16", "F16", "F32", "F64"):
        return np.zeros(0)
    return to_floats(block, tensor.spec.dtype, np.float64)
