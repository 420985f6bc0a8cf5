"""Rotations that are learned from the weights themselves, once they are needed.

A plan knows what will be learned and from what; the matrices are made when a run begins.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ctcli.checkpoint.value import ROTATIONS_NAME, Shard
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import Computed, Node, Output, Where, starting_point
from ctcli.lazy.tensors import TensorSpec
from ctcli.ops.rotation import Rotation
from ctcli.ops.transforms import seed_for
from ctcli.rewrites.surgery.sampling import Sample, most_rows, rows_of
from ctcli.units import Advance, format_bytes

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ctcli.lazy.nodes import Block, Blocks
    from ctcli.models.architecture import AttentionRole
    from ctcli.ops.walsh import RowTransform
    from ctcli.rewrites.surgery.edits import Gain
    from ctcli.rewrites.surgery.surgery import Surgery


@dataclass(frozen=True, eq=False)
class LearnedRotation:
    """A rotation that is learned when it is first asked for. It is the same wherever it is.

    Attributes:
        name: as in a file of rotations.
        start: where learning begins.
        rows: of weights that read what it rotates.
        columns: of weights that write it.
        steps: of learning.
    """

    name: str
    start: Rotation
    rows: Sample
    columns: Sample
    steps: int
    _found: list[Rotation] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def size(self) -> int:
        """Coordinates it works on."""
        return self.start.size

    block_size = size

    @property
    def description(self) -> str:
        """For people."""
        found = f"{self.rows.rows:,} rows"
        if self.columns.rows:
            found += f" and {self.columns.rows:,} columns"
        sample = f"{found} of {self.size}"
        return f"learned in {self.steps} steps from {sample}, from {self.start.description} on"

    @property
    def count(self) -> int:
        """How many rows and columns there are to learn from."""
        return self.rows.rows + self.columns.rows

    @property
    def nbytes(self) -> int:
        """Bytes that go through all steps."""
        from ctcli.ops.learning import ROWS_A_STEP

        return 2 * self.steps * min(self.count, ROWS_A_STEP) * self.size

    @property
    def memory(self) -> int:
        """Bytes that learning holds."""
        from ctcli.ops.learning import learning_bytes

        return learning_bytes(self.count, self.size)

    @property
    def rotation(self) -> Rotation:
        """The rotation; learned now, if it was not."""
        self.prepare(lambda _: None)
        return self._found[0]

    def prepare(self, advance: Advance) -> None:
        """Learn it, unless it was."""
        with self._lock:
            if not self._found:
                self._found.append(self._learn(advance))

    def apply(self, x: Block) -> Block:
        """X Q for x [rows, size]."""
        return self.rotation.apply(x)

    def apply_left(self, w: Block) -> Block:
        """Q^T w for w [size, columns]."""
        return self.rotation.apply_left(w)

    def of_rows(self, dtype: DTypeLike) -> RowTransform | None:
        """X Q as one fast transform of each row, where it is no more."""
        return self.rotation.of_rows(dtype)

    def resized(self, size: int) -> Rotation:
        """The block-diagonal rotation of so many coordinates."""
        return self.rotation.resized(size)

    def _learn(self, advance: Advance) -> Rotation:
        import numpy as np

        from ctcli.ops.exact import precise_product
        from ctcli.ops.learning import Learner, normalise

        rows, columns = (
            normalise(each.read(self.start.apply)) for each in (self.rows, self.columns)
        )
        learner = Learner(self.columns.group, self.steps, self.rows.seed)
        found = precise_product(self.start.matrix(), learner.learn(rows, columns, advance))
        # So it is in the file that it can be read from again.
        return Rotation(((found.astype(np.float32).astype(np.float64),),), f"learned {self.size}")


class Learning:
    """The rotations of a run that are learned; a `Preparation`.

    Args:
        surgery: of the checkpoint; R1 is asked for once its norms are fused.
        steps: of learning.
        seed: of the choice of rows.
    """

    def __init__(self, surgery: Surgery, steps: int, seed: int) -> None:
        self._surgery = surgery
        self._steps = steps
        self._seed = seed
        self.rotations: dict[str, LearnedRotation] = {}

    def stream(self, start: Rotation) -> LearnedRotation:
        """R1, from the linears of all blocks that read the stream, and those that write it.

        Raises:
            CtcliError: a LayerNorm does not let it pass.
        """
        parts = self._surgery.architecture
        if parts.norm_kind == "layer":
            raise CtcliError(
                f"{parts.family}: R1 cannot be learned: a LayerNorm subtracts the mean.",
                "Give --rotations R2, or another --transform-type.",
            )
        inputs = [block.inputs for block in parts.attentions]
        inputs += [block.inputs for block in parts.mixers]
        inputs += [block.inputs for block in parts.mlps]
        return self._learned("R1", start, [n for names in inputs for n in names], parts.writers)

    def values(self, attention: AttentionRole, start: Rotation) -> LearnedRotation:
        """R2 of an attention block, from the output linear, which reads the heads."""
        return self._learned(f"{attention.module}.R2", start, [attention.o])

    def _learned(
        self, name: str, start: Rotation, readers: Sequence[str], writers: Sequence[str] = ()
    ) -> LearnedRotation:
        from ctcli.ops.learning import group_of

        transposed, seed = self._surgery.architecture.transposed, seed_for(self._seed, name)
        size, most = start.size, most_rows(start.size)
        rows = Sample(self._nodes(readers, transposed, self._surgery.gains), size, seed, most)
        written = self._nodes(writers, {*writers} - {*transposed}, {})
        columns = Sample(written, size, seed, most, group_of(size))
        share = most * rows.every // max(1, rows.every + columns.every)
        rows, columns = replace(rows, most=share), replace(columns, most=most - share)
        found = LearnedRotation(name, start, rows, columns, self._steps)
        self.rotations[name] = found
        return found

    def _nodes(
        self, modules: Sequence[str], transposed: Collection[str], gains: Mapping[str, Gain]
    ) -> tuple[Node, ...]:
        """Weights behind the gains that they read, some of them transposed."""
        found = []
        for module in dict.fromkeys(modules):
            weight = self._surgery.stored.get(f"{module}.weight")
            if exact := starting_point(weight) if weight else None:
                found.append(rows_of(module, exact, gains.get(module), module in transposed))
        return tuple(found)

    @property
    def title(self) -> str:
        """What is done."""
        return "learning rotations"

    @property
    def nbytes(self) -> int:
        """Bytes that go through it."""
        return sum(rotation.nbytes for rotation in self.rotations.values())

    @property
    def memory(self) -> int:
        """Bytes that learning holds, one after another."""
        return max(rotation.memory for rotation in self.rotations.values())

    def run(self, advance: Advance) -> None:
        """Learn them all."""
        for rotation in self.rotations.values():
            rotation.prepare(advance)

    @property
    def words(self) -> str:
        """For people."""
        count = "1 matrix" if len(self.rotations) == 1 else f"{len(self.rotations)} matrices"
        return f"{count} before the run, in at most {format_bytes(self.memory)}"


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows of a learned matrix."""

    learned: LearnedRotation

    def __call__(self, _blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        rows = self.learned.rotation.matrix(where.start, where.stop)
        return {"matrix": rows.astype("f4")}, ()


def rotations_file(learned: Mapping[str, LearnedRotation]) -> Shard:
    """A file of rotations, as `read_rotations` reads it: [n, n] float32 by name."""
    matrices = {name: _matrix(name, each) for name, each in learned.items()}
    return Shard(ROTATIONS_NAME, matrices, {})


def _matrix(name: str, learned: LearnedRotation) -> Computed:
    shape = learned.size, learned.size
    outputs = {"matrix": Output(TensorSpec("F32", shape))}
    node = Node(f"{name}/matrix/learned", name, shape, {}, outputs, Matrix(learned))
    return Computed(node, "matrix")
