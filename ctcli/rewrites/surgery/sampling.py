"""Rows of weights, some of many, read by ranges: what rotations are learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ctcli.errors import CtcliError
from ctcli.lazy.cut import cut
from ctcli.lazy.evaluate import Evaluator, combined
from ctcli.lazy.nodes import (
    COLUMNS,
    Axis,
    Exact,
    Input,
    Node,
    NonFiniteError,
    Output,
    Where,
    all_nodes,
    matrix_shape,
    step_key,
)
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.rewrites.surgery.edits import Gain
from ctcli.rewrites.surgery.kernels import HINT

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks
    from ctcli.ops.bits import Floats

MOST_ROWS = 16_384
_RUN = 16  # neighbouring rows, which are read at once


@dataclass(frozen=True)
class Rows:
    """Rows of a weight times the gain of the norm before it: float64.

    Attributes:
        tag: safetensors tag of the blocks.
        offset: what the model adds to the gain; None: there is no gain.
    """

    tag: str
    offset: float | None

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: the weight holds NaN or infinities.
        """
        import numpy as np

        from ctcli.ops.bits import to_floats

        rows = to_floats(blocks["weight"], self.tag, np.float64)
        if self.offset is not None:
            rows = rows * (blocks["gain"] + self.offset)[where.columns.start : where.columns.stop]
        if not np.isfinite(rows).all():
            raise NonFiniteError(HINT)
        return {"rows": rows}, ()


def rows_of(module: str, weight: Exact, gain: Gain | None, transposed: bool) -> Node:
    """The rows [out, in] of a linear's weight, behind the norm that it reads."""
    stored = matrix_shape(weight.spec.shape)
    shape = stored[::-1] if transposed else stored
    inputs = {"weight": Input(weight, stored, "transposed" if transposed else "along")}
    if gain:
        inputs["gain"] = gain.read
    return Node(
        key=step_key(module, "weight", weight, "sampled"),
        module=module,
        shape=shape,
        inputs=inputs,
        outputs={"rows": Output(TensorSpec("F64", shape))},
        kernel=Rows(weight.spec.dtype, gain.offset if gain else None),
    )


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of some weights, drawn from all alike.

    Attributes:
        nodes: the weights, as `rows_of` gives them.
        size: neighbours in a row that are taken for one: the columns, or less.
        seed: of the choice.
    """

    nodes: tuple[Node, ...]
    size: int
    seed: int

    @cached_property
    def rows(self) -> int:
        """How many rows of `size` there are, at most."""
        every = sum(node.shape[0] * node.shape[1] // self.size for node in self.nodes)
        return min(MOST_ROWS, every)

    def read(self, turn: Callable[[Floats], Floats] = lambda rows: rows) -> Floats:
        """The rows, [at most `rows`, size] float32.

        Args:
            turn: what float64 rows become first.

        Raises:
            CtcliError: a weight cannot be read, or is not finite.
        """
        import numpy as np

        spans: list[tuple[Node, int]] = [
            (node, start) for node in self.nodes for start in range(0, node.shape[0], _run_of(node))
        ]
        order: list[int] = (
            np.random.RandomState(self.seed & 0xFFFFFFFF).permutation(len(spans)).tolist()
        )
        every = (spans[number] for number in order)
        rows = np.cumsum([_rows(node, start, self.size) for node, start in every])
        chosen = sorted(order[: int(np.searchsorted(rows, self.rows)) + 1])
        evaluator = Evaluator(_Ranges(), values_of(spans[number][0] for number in chosen))
        found, count = np.empty((self.rows, self.size), np.float32), 0
        for number in chosen:
            part = turn(self._some(evaluator, *spans[number]))[: self.rows - count]
            found[count : count + len(part)] = part
            count += len(part)
        return found[:count]

    def _some(self, evaluator: Evaluator, node: Node, start: int) -> Floats:
        import numpy as np

        stop = min(start + _run_of(node), node.shape[0])
        try:
            found = [made.outputs["rows"] for made in evaluator.compute(node, start, stop)]
        except NonFiniteError as error:
            problem = f"{node.module}.weight: some of its values are NaN or infinite."
            raise CtcliError(problem, str(error)) from error
        return np.concatenate(found).reshape(-1, self.size)


def values_of(nodes: Iterable[Node]) -> Mapping[str, Block]:
    """The values that nodes need, by key, each computed here."""
    found: dict[str, Block] = {}
    evaluator = Evaluator(_Ranges(), found)
    for node in all_nodes(nodes):
        if node.combine:
            parts = [evaluator.value(node, *span) for span in cut(node).spans()]
            found[node.key] = combined(parts, node.combine)
    return found


def _run_of(node: Node) -> int:
    """How many rows of a node are read at once: whole granules."""
    together = node.together[0]
    return -(-_RUN // together) * together


def _rows(node: Node, start: int, size: int) -> int:
    """How many rows of a size one reading gives."""
    return (min(start + _run_of(node), node.shape[0]) - start) * (node.shape[1] // size)


class _Ranges:
    """Reads ranges of source files, here or on a hub, without fetching them."""

    def read(self, tensor: Stored, axis: Axis, start: int, stop: int) -> Block:
        """See `Reader`."""
        import numpy as np

        from ctcli.lazy.known import array_dtype

        rows, _ = matrix_shape(tensor.spec.shape)
        first, last = (0, rows) if axis == COLUMNS else (start, stop)
        width = tensor.spec.nbytes // max(1, rows)
        content = tensor.file.read(tensor.start + first * width, (last - first) * width)
        if len(content) < (last - first) * width:
            raise CtcliError(f"{tensor.file.name}: it ends too early.", "Repair the checkpoint.")
        block = np.frombuffer(content, array_dtype(tensor.spec)).reshape(last - first, -1)
        return block[:, start:stop] if axis == COLUMNS else block
