"""Rows of weights, some of many, read by ranges: what rotations are learned from."""

from __future__ import annotations

import math
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
    from ctcli.ops.bits import Bits, Floats

_MOST_ROWS, _MOST_ELEMENTS = 2**18, 2**27
_RUN = 64  # neighbouring rows, which are read at once
_RUN_OF_GROUPS = 1024  # for which all columns of a weight are read
_BYTES_AT_ONCE = 2**24


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


def most_rows(size: int) -> int:
    """How many rows of a size are held at once, at most."""
    return min(_MOST_ROWS, _MOST_ELEMENTS // size)


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
        most: how many rows of `size`, at most.
        group: neighbouring rows that are drawn together, and lie behind one another.
    """

    nodes: tuple[Node, ...]
    size: int
    seed: int
    most: int
    group: int = 1

    @cached_property
    def rows(self) -> int:
        """How many rows of `size` there are, at most."""
        return min(self.most, self.every) // self.group * self.group

    @cached_property
    def every(self) -> int:
        """How many there are in the weights."""
        return sum(self._rows(node, start) for node, start in self._spans())

    def read(self, turn: Callable[[Floats], Floats] = lambda rows: rows) -> Bits:
        """The rows, [at most `rows`, size], as bits of BF16.

        Args:
            turn: what float64 rows become first.

        Raises:
            CtcliError: a weight cannot be read, or is not finite.
        """
        import numpy as np

        from ctcli.ops.bits import from_floats

        spans = self._spans()
        order: list[int] = (
            np.random.RandomState(self.seed & 0xFFFFFFFF).permutation(len(spans)).tolist()
        )
        every = (spans[number] for number in order)
        rows = np.cumsum([self._rows(node, start) for node, start in every])
        chosen = sorted(order[: int(np.searchsorted(rows, self.rows)) + 1])
        evaluator = Evaluator(_Ranges(), values_of(spans[number][0] for number in chosen))
        found, count = np.empty((self.rows, self.size), np.uint16), 0
        for number in chosen:
            part = turn(self._some(evaluator, *spans[number]))[: self.rows - count]
            found[count : count + len(part)] = from_floats(part.copy(), "BF16")
            count += len(part)
        return found[:count]

    def _some(self, evaluator: Evaluator, node: Node, start: int) -> Floats:
        import numpy as np

        stop = min(start + self._run(node), node.shape[0])
        try:
            found = [made.outputs["rows"] for made in evaluator.compute(node, start, stop)]
        except NonFiniteError as error:
            problem = f"{node.module}.weight: some of its values are NaN or infinite."
            raise CtcliError(problem, str(error)) from error
        rows = np.concatenate(found).reshape(-1, self.group, node.shape[1] // self.size, self.size)
        return rows.swapaxes(1, 2).reshape(-1, self.size)

    def _spans(self) -> list[tuple[Node, int]]:
        """Where the rows begin that are read at once: of groups, only whole ones."""
        spans = []
        for node in self.nodes:
            run = self._run(node)
            least = 1 if self.group == 1 else run
            spans += [(node, start) for start in range(0, node.shape[0] + 1 - least, run)]
        return spans

    def _run(self, node: Node) -> int:
        """How many rows of a node are read at once: whole granules, and whole groups."""
        together = math.lcm(node.together[0], self.group)
        if self.group == 1:
            return max(1, _RUN // together) * together
        whole = node.shape[0] // together
        runs = max(1, -(-whole * together // _RUN_OF_GROUPS))
        return max(1, whole // runs) * together

    def _rows(self, node: Node, start: int) -> int:
        """How many rows of `size` one reading gives."""
        rows = min(self._run(node), node.shape[0] - start)
        return rows * (node.shape[1] // self.size)


def values_of(nodes: Iterable[Node]) -> Mapping[str, Block]:
    """The values that nodes need, by key, each computed here."""
    found: dict[str, Block] = {}
    evaluator = Evaluator(_Ranges(), found)
    for node in all_nodes(nodes):
        if node.combine:
            parts = [evaluator.value(node, *span) for span in cut(node).spans()]
            found[node.key] = combined(parts, node.combine)
    return found


class _Ranges:
    """Reads ranges of source files, here or on a hub, without fetching them."""

    def read(self, tensor: Stored, axis: Axis, start: int, stop: int) -> Block:
        """See `Reader`; columns come out of many rows, so many bytes of them at once."""
        if axis != COLUMNS:
            return _rows_from(tensor, start, stop)
        import numpy as np

        rows, _ = matrix_shape(tensor.spec.shape)
        height = max(1, _BYTES_AT_ONCE * rows // max(1, tensor.spec.nbytes))
        tops = range(0, rows, height)
        parts = (_rows_from(tensor, top, min(top + height, rows)) for top in tops)
        return np.concatenate([part[:, start:stop].copy() for part in parts])


def _rows_from(tensor: Stored, start: int, stop: int) -> Block:
    import numpy as np

    from ctcli.lazy.known import array_dtype

    width = tensor.spec.nbytes // max(1, matrix_shape(tensor.spec.shape)[0])
    content = tensor.file.read(tensor.start + start * width, (stop - start) * width)
    if len(content) < (stop - start) * width:
        raise CtcliError(f"{tensor.file.name}: it ends too early.", "Repair the checkpoint.")
    return np.frombuffer(content, array_dtype(tensor.spec)).reshape(stop - start, -1)
