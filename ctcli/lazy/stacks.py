"""Small nodes that are alike, computed as one: their matrices lie one below the other.

What a tensor costs beside its elements, it costs once for all of a stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from ctcli.lazy.cut import BLOCK_ELEMENTS, BYTES_PER_ELEMENT
from ctcli.lazy.nodes import ROWS, Input, Node, Shape
from ctcli.lazy.tensors import Stored

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks

# Bytes that the largest stack holds, of which the widest elements have eight.
STACK_MEMORY = BLOCK_ELEMENTS * (8 + BYTES_PER_ELEMENT)


class Stackable(Protocol):
    """A kernel for which several matrices can be rows of one; see `nodes.Kernel`."""

    def stacked(
        self, blocks: Blocks, shape: Shape, count: int, /
    ) -> tuple[Blocks, Sequence[Sequence[Any]]]:
        """Compute so many matrices of a shape at once, and measure the same on each as on one.

        Returns:
            Rows of each output, likewise one below the other; all of those that are whole.
        """


class StackReader(Protocol):
    """Reads stored tensors."""

    def read_stack(self, tensors: Sequence[Stored]) -> Block:
        """The rows of matrices of one file, dtype and shape, one below the other.

        Raises:
            CtcliError: they cannot be read.
        """


def stacks(nodes: Iterable[Node]) -> list[list[Node]]:
    """Divide nodes into stacks, none of which has more elements than a block; some of only one.

    It decides no byte and no measure: both are as if each node were computed alone.
    """
    found: list[list[Node]] = []
    open_ones: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        common = _in_common(node)
        stack = open_ones.get(common) if common else None
        if stack is None:
            found.append(stack := [])
            if common:
                open_ones[common] = stack
        stack.append(node)
        if common and (len(stack) + 1) * node.shape[0] * node.shape[1] > BLOCK_ELEMENTS:
            del open_ones[common]
    return found


def _in_common(node: Node) -> tuple[object, ...] | None:
    """What nodes of a stack have in common; None: this one has to be computed alone."""
    rows, columns = node.shape
    if len(node.inputs) > 1 or not hasattr(node.kernel, "stacked") or node.axis != ROWS:
        return None
    (item,) = node.inputs.values()
    if not isinstance(item.tensor, Stored) or item != Input(item.tensor, node.shape):
        return None
    if item.tensor.spec.shape != node.shape:
        return None
    if not rows * columns or rows % node.granule[0] or 2 * rows * columns > BLOCK_ELEMENTS:
        return None
    return id(node.kernel), node.shape, item.tensor.spec, item.tensor.file


def compute_stack(reader: StackReader, nodes: Sequence[Node]) -> list[tuple[Blocks, Sequence[Any]]]:
    """The outputs of the nodes of a stack, and what was measured on each.

    Raises:
        CtcliError: something cannot be read.
        NonFiniteError: the kernel met NaN or infinities in one of them.
    """
    first, count = nodes[0], len(nodes)
    (name,) = first.inputs
    block = reader.read_stack([tensor for node in nodes for tensor in node.reads])
    kernel = cast("Stackable", first.kernel)
    found, measured = kernel.stacked({name: block}, first.shape, count)
    parts = {
        name: [rows] * count
        if first.outputs[name].is_whole
        else rows.reshape(count, -1, *rows.shape[1:])
        for name, rows in found.items()
    }
    return [({name: part[i] for name, part in parts.items()}, measured[i]) for i in range(count)]
