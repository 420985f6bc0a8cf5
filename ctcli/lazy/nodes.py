"""What is computed: nodes with inputs, outputs and a kernel, and how they run along each other.

A node runs over a matrix [rows, columns]; whoever evaluates it asks for some of its rows, or of its
columns, and the node asks its inputs for the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.ops.dtypes import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # F32 and F64 are floats; stored elements of other dtypes are unsigned integers of their size.
    Block = NDArray[Any]
    Blocks = Mapping[str, Block]

T = TypeVar("T")
Axis = Literal[0, 1]
Shape = tuple[int, int]
ROWS: Axis = 0
COLUMNS: Axis = 1
# Fewer columns at once are not worth it: each row of them is a piece of the file of its own.
LEAST_COLUMNS = 1024
# So many bytes of a file are read in about the time that a system call takes.
PIECE_BYTES = 4096


class NonFiniteError(ValueError):
    """A kernel met NaN or infinities that it must not let through; says what to do next."""


class ContentError(ValueError):
    """What a kernel reads contradicts what was declared.

    Attributes:
        hint: what to do next.
    """

    def __init__(self, problem: str, hint: str) -> None:
        """Say what is wrong, without the name of the module."""
        super().__init__(problem)
        self.hint = hint


class Computed(NamedTuple):
    """One output of a node."""

    node: Node
    output: str

    @property
    def spec(self) -> TensorSpec:
        """Its dtype and shape; between steps F32 or F64 whatever it will be rounded to."""
        return self.node.outputs[self.output].spec


# A tensor whose values no step has rounded.
Exact = Stored | Computed


@dataclass(frozen=True, eq=False, slots=True)
class Stacked:
    """A tensor of matrices that are computed one by one, such as the experts of a layer.

    Attributes:
        spec: its dtype and shape.
        parts: what it is made of, one below the other.
        linears: the weights [out, in] of the linears inside, by name; empty: they are not known.
    """

    spec: TensorSpec
    parts: tuple[Computed, ...]
    linears: Mapping[str, Computed] = field(default_factory=dict)


LazyTensor = Stored | Known | Computed | Stacked


@dataclass(frozen=True, slots=True)
class Where:
    """Which part of a node's matrix a kernel computes.

    Attributes:
        axis: whether it is some rows (0) or some columns (1).
        start: the first of them.
        stop: the one behind the last.
        shape: [rows, columns] of the whole matrix.
    """

    axis: Axis
    start: int
    stop: int
    shape: Shape

    @property
    def rows(self) -> range:
        """The rows."""
        return range(self.start, self.stop) if self.axis == ROWS else range(self.shape[0])

    @property
    def columns(self) -> range:
        """The columns."""
        return range(self.start, self.stop) if self.axis == COLUMNS else range(self.shape[1])


class Kernel(Protocol):
    """A pure function with its settings: a frozen dataclass, so that it can go to other processes.

    It leaves the blocks that it is given as they are.
    """

    def __call__(self, blocks: Blocks, where: Where, /) -> tuple[Blocks, Sequence[Any]]:
        """Compute that part of each output, by name, and measure something or nothing.

        Raises:
            NonFiniteError: an input, or a result, is not finite.
            ContentError: an input contradicts what was declared.
        """


class Input(NamedTuple):
    """How a node reads a tensor.

    Attributes:
        tensor: what it reads.
        shape: [rows, columns] that the tensor is taken for.
        run: `along`: its rows run with the node's rows, its columns with the node's columns;
            `transposed`: its columns with the node's rows; `whole`: all of it, a value.
        each: its rows and columns that belong to one granule of the node, 0 where it is not cut;
            None: it has the node's own rows and columns.
        label: what messages call a value that may hold NaN; empty: it cannot be the reason for any.
        columns: the first of its columns that it has for the node, and the one behind the last;
            None: it has all of them.
    """

    tensor: LazyTensor
    shape: Shape
    run: Literal["along", "transposed", "whole"] = "along"
    each: Shape | None = None
    label: str = ""
    columns: tuple[int, int] | None = None

    def axis(self, axis: Axis) -> Axis:
        """The direction in which it runs while the node runs along `axis`."""
        if self.run == "along":
            return axis
        return COLUMNS if axis == ROWS else ROWS

    def granules(self, node: Node, axis: Axis) -> int:
        """How many of the node's rows (columns) make whole granules of the node that it reads."""
        assert isinstance(self.tensor, Computed), "stored tensors have no granules"
        own = self.axis(axis)
        below = self.tensor.node.together[own]
        if self.each is None:
            return below
        each = self.each[own]
        return node.granule[axis] * (below // math.gcd(below, each)) if each else 1

    def least_rows(self, node: Node) -> int:
        """How many of the node's rows make long pieces of a stored matrix that is transposed."""
        together, each = (1, 1) if self.each is None else (node.granule[ROWS], self.each[COLUMNS])
        bits = each * DTYPES[self.tensor.spec.dtype].bits
        return -(-8 * PIECE_BYTES * together // bits) if bits else 1

    def span(self, node: Node, axis: Axis, start: int, stop: int) -> tuple[int, int]:
        """Its rows (columns) that belong to some of the node's, which begin with a granule."""
        own = self.axis(axis)
        first, length = 0, self.shape[own]
        if own == COLUMNS and self.columns:
            first, length = self.columns[0], self.columns[1] - self.columns[0]
        if self.each is None:
            return first + start, first + stop
        each = self.each[own]
        if not each:
            return first, first + length
        granule = node.granule[axis]
        last = length if stop == node.shape[axis] else stop // granule * each
        return first + start // granule * each, first + last


@dataclass(frozen=True, slots=True)
class Output:
    """One of the tensors that a node computes.

    Attributes:
        spec: its dtype and shape; for every granule of the node it has equally many rows (columns,
            where the node runs along columns).
        is_whole: all of it comes from the first granule instead.
    """

    spec: TensorSpec
    is_whole: bool = False


class Unrounded(NamedTuple):
    """How a node computes its output before it rounds it; nodes that are alike share one.

    Attributes:
        step: what the key of a node without the rounding has in place of the last step.
        outputs: the output as floats.
        kernel: how they are computed.
    """

    step: str
    outputs: Mapping[str, Output]
    kernel: Kernel


@dataclass(eq=False, slots=True)
class Node:
    """Tensors that are computed together. Nobody changes one.

    It is not frozen, for plans make a hundred thousand of them, and that takes half the time so.

    Attributes:
        key: `<module>/<tensor>/<steps>`, unique in a run, and the same in every process that makes
            the same plan.
        module: the module that it belongs to, for messages and reports.
        shape: [rows, columns] of the matrix that it runs over.
        inputs: what it reads, by name; none where the matrix is generated.
        outputs: what it makes, by name.
        kernel: how.
        granule: rows, and columns, that belong together for the kernel.
        axis: the direction in which it runs where its outputs are written.
        combine: how the blocks' results become one small value; None: they are parts of outputs.
        measure: how what was measured on two blocks becomes one, element by element.
        before: what the one output is the rounding of: a tensor, or how it is computed.
    """

    key: str
    module: str
    shape: Shape
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    kernel: Kernel
    granule: Shape = (1, 1)
    axis: Axis = ROWS
    combine: Literal["max", "sum"] | None = None
    measure: Literal["max", "sum"] = "sum"
    before: Exact | Unrounded | None = None
    # What follows from the inputs is found once: plans ask it of every node several times.
    together: Shape = field(init=False)
    """Rows, and columns, that belong together for it and all nodes that it pulls."""
    across: Shape = field(init=False)
    """Elements of a row, and of a column, of the widest matrix that it pulls."""
    values: tuple[Node, ...] = field(init=False)
    """The values that it, or a node that it pulls, reads whole."""
    reads: tuple[Stored, ...] = field(init=False)
    """What it, and the nodes that it pulls, read of files; values apart."""
    least_rows: int = field(init=False)
    """Rows that are worth being read at once, where stored matrices run across them."""

    def __post_init__(self) -> None:
        values: list[Node] = []
        reads: list[Stored] = []
        (down, width), (rows, columns) = self.granule, self.shape
        least = 1
        for item in self.inputs.values():
            tensor = item.tensor
            if isinstance(tensor, Stored):
                reads.append(tensor)
                if item.run == "transposed":
                    least = max(least, item.least_rows(self))
            elif isinstance(tensor, Computed) and item.run == "whole":
                values.append(tensor.node)
            elif isinstance(tensor, Computed):
                below = tensor.node
                values += below.values
                reads += below.reads
                least = max(least, below.least_rows)
                columns, rows = max(columns, below.across[0]), max(rows, below.across[1])
                down = math.lcm(down, item.granules(self, ROWS))
                width = math.lcm(width, item.granules(self, COLUMNS))
        self.together = down, width
        self.across = columns, rows
        self.values = _each_once(values)
        self.reads = _each_once(reads)
        self.least_rows = least

    @property
    def exact(self) -> Exact | None:
        """What its one output is the rounding of: a further step starts from there.

        None: nothing, or what cannot be had. The node of it is made when it is first asked for.
        """
        before = self.before
        if not isinstance(before, Unrounded):
            return before
        key = f"{self.key.rpartition('/')[0]}{before.step}"
        made = Node(
            key,
            self.module,
            self.shape,
            self.inputs,
            before.outputs,
            before.kernel,
            self.granule,
            self.axis,
        )
        (output,) = before.outputs
        self.before = Computed(made, output)
        return self.before

    @property
    def is_value(self) -> bool:
        """Whether it is computed once, held while others need it, and never written."""
        return self.combine is not None

    def place(self, output: str, axis: Axis, start: int) -> int:
        """The row (column) of an output that the part from `start` on begins with."""
        shape, granule = self.outputs[output].spec.shape, self.granule[axis]
        each = granule
        if len(shape) > axis:
            each = shape[axis] * granule // max(1, self.shape[axis])
        return start // granule * each


def _each_once(found: list[T]) -> tuple[T, ...]:
    if len(found) < 2 or (len(found) == 2 and found[0] != found[1]):
        return tuple(found)
    return tuple(dict.fromkeys(found))


def preferred_axis(shape: Shape, together: Shape) -> Axis:
    """Whether blocks of whole rows are smaller, or blocks of whole columns."""
    (rows, columns), (down, across) = shape, together
    is_smaller = down * columns > rows * max(across, LEAST_COLUMNS)
    return COLUMNS if down > 1 and is_smaller else ROWS


def axis_of(tensor: LazyTensor) -> Axis:
    """The direction in which it is best read."""
    if isinstance(tensor, Computed):
        return preferred_axis(tensor.node.shape, tensor.node.together)
    return ROWS


def starting_point(tensor: LazyTensor) -> Exact | None:
    """What a further step starts from: a stored tensor, or a computed one before it was rounded.

    None: its values are known, or cannot be had before they were rounded, or not as one matrix.
    """
    if isinstance(tensor, Computed):
        return tensor.node.exact
    return tensor if isinstance(tensor, Stored) else None


def matrix_shape(shape: Sequence[int]) -> Shape:
    """[rows, columns] that a tensor is taken for: [first, all others], or a vector for one row."""
    if len(shape) > 1:
        return shape[0], math.prod(shape[1:])
    return 1, math.prod(shape)


def step_key(module: str, leaf: str, tensor: LazyTensor, step: str) -> str:
    """A key for what a step makes of a tensor, as tensor `<module>.<leaf>`."""
    before = ""
    if isinstance(tensor, Computed):
        path = tensor.node.key.removeprefix(f"{tensor.node.module}/")
        before = path.removeprefix(f"{leaf}/")
    return "/".join(filter(None, (module, leaf, before, step)))


def all_nodes(nodes: Iterable[Node], seen: set[Node] | None = None) -> list[Node]:
    """Some nodes, each behind the values that it needs, each once.

    Args:
        nodes: in order.
        seen: nodes that are left out; those that are returned join them.
    """
    known: set[Node] = set() if seen is None else seen
    found: list[Node] = []
    for node in nodes:
        if node not in known:
            known.add(node)
            if node.values:
                found += all_nodes(node.values, known)
            found.append(node)
    return found
