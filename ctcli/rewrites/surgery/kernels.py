"""What edits do to blocks: a gain, maps of columns and rows, the one rounding."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ctcli.lazy.nodes import NonFiniteError, Where
from ctcli.models.architecture import HeadRows

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ctcli.lazy.nodes import Block, Blocks
    from ctcli.ops.walsh import RowTransform

HINT = "Repair the checkpoint; if a result does not fit, start with fuse-norms --dtype float32."


class Map(Hashable, Protocol):
    """A square matrix M that mixes coordinates: a rotation, or the subtraction of the mean."""

    @property
    def size(self) -> int:
        """Coordinates it works on."""

    @property
    def block_size(self) -> int:
        """Neighbouring coordinates that are mixed with each other, and no others."""

    def apply(self, x: Block) -> Block:
        """X M for x [rows, size]."""

    def apply_left(self, w: Block) -> Block:
        """M^T w for w [size, columns]."""

    def of_rows(self, dtype: DTypeLike) -> RowTransform | None:
        """X M as one fast transform of each row, float32 or float64; None: it is more than that."""

    def resized(self, size: int) -> Map:
        """The block-diagonal map of so many coordinates: some of its blocks, or more of them."""


@dataclass(frozen=True, eq=False)
class RowMap:
    """M^T W on all rows, or on those of some heads."""

    map: Map
    heads: HeadRows | None = None

    @property
    def granule(self) -> int:
        """Rows that belong together."""
        return self.heads.stride if self.heads else self.map.block_size

    def apply(self, w: Block, first: int) -> Block:
        """The map of some whole granules, w [rows, columns], of which `first` is the first row."""
        if self.heads is None:
            return repeated(self.map, w.shape[0]).apply_left(w)
        heads, columns = self.heads, w.shape[1]
        cells = w.reshape(-1, heads.stride, columns)
        begin = heads.first // heads.stride - first // heads.stride
        start = heads.first % heads.stride
        place = slice(start, start + heads.group * heads.size)
        chosen = cells[max(begin, 0) : max(begin + heads.heads // heads.group, 0), place]
        if math.prod(chosen.shape):
            flat = chosen.reshape(-1, columns)
            chosen[:] = repeated(self.map, flat.shape[0]).apply_left(flat).reshape(chosen.shape)
        return w


@lru_cache(maxsize=256)
def repeated(once: Map, size: int) -> Map:
    """The block-diagonal map of so many coordinates: some of its blocks, or more of them."""
    return once if size == once.size else once.resized(size)


class EditBlock(NamedTuple):
    """Edit rows (columns) of a matrix.

    Attributes:
        leaf: the input's name, and the output's.
        tag: safetensors tag of the blocks.
        target: of the floats to compute in, F32 or F64.
        gain: offset of the gain, and whether it divides; None: there is none.
        columns: maps of columns.
        rows: maps of rows.
        device: where to compute.
        transposed: whether the matrix is stored [in, out]: its columns are those that are called
            rows here.
    """

    leaf: str
    tag: str
    target: str
    gain: tuple[float, bool] | None
    columns: tuple[Map, ...]
    rows: tuple[RowMap, ...]
    device: str
    transposed: bool = False

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        import numpy as np

        from ctcli.ops.backend import on_device, on_host

        transform, columns = self._transform(blocks)
        bits, _ = self._pass(blocks, where, self.target, transform)
        values = bits.view(f"f{bits.itemsize}")
        if self.transposed:
            gain = self._gain(blocks, where)
            if gain is not None:
                values = values * gain.astype(values.dtype)[:, None]
            values = np.ascontiguousarray(values.T)
        x = on_device(values, self.device)
        for each in columns:
            x = repeated(each, x.shape[1]).apply(x)
        outputs = where.columns if self.transposed else where.rows
        for rows in self.rows:
            x = rows.apply(x, outputs.start)
        result = on_host(x)
        return {self.leaf: np.ascontiguousarray(result.T) if self.transposed else result}, ()

    def at_once(self, blocks: Blocks, where: Where, target: str) -> tuple[Block, bool] | None:
        """All of it and the rounding to a dtype in one pass; None: it takes several.

        Returns:
            The bits of the result, and whether all are finite.
        """
        transform, columns = self._transform(blocks)
        if columns or self.rows or self.transposed:
            return None
        return self._pass(blocks, where, target, transform)

    def _pass(
        self, blocks: Blocks, where: Where, target: str, transform: RowTransform | None
    ) -> tuple[Block, bool]:
        """The gain, if columns are inputs, and a transform; see `at_once`."""
        from ctcli.ops.edits import edited as edit

        return edit(
            blocks[self.leaf],
            self.tag,
            target,
            gain=None if self.transposed else self._gain(blocks, where),
            divides=bool(self.gain and self.gain[1]),
            transform=transform,
            in_float32=self.target == "F32",
            device=self.device,
        )

    def _gain(self, blocks: Blocks, where: Where) -> Block | None:
        """Of the inputs that the block has."""
        inputs = where.rows if self.transposed else where.columns
        return (blocks["gain"] + self.gain[0])[_slice(inputs)] if self.gain else None

    def _transform(self, blocks: Blocks) -> tuple[RowTransform | None, tuple[Map, ...]]:
        """The first map of columns, if a pass takes it in; and the maps that are left."""
        if self.columns and self.device == "cpu" and not self.transposed:
            first = repeated(self.columns[0], blocks[self.leaf].shape[1])
            if found := first.of_rows("f4" if self.target == "F32" else "f8"):
                return found, self.columns[1:]
        return None, self.columns


@dataclass(frozen=True)
class Round:
    """Round a matrix to what is stored.

    Attributes:
        leaf: the input's name, and the output's.
        tag: safetensors tag of the blocks.
        target: of the result.
        device: where to compute.
    """

    leaf: str
    tag: str
    target: str
    device: str

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: what was read is not finite, or the result is too large for the dtype.
        """
        from ctcli.ops.edits import edited as edit

        in_float32 = self.tag != "F64"
        result, is_finite = edit(
            blocks[self.leaf], self.tag, self.target, in_float32=in_float32, device=self.device
        )
        if not is_finite:
            raise NonFiniteError(HINT)
        return {self.leaf: result}, ()


class EditAndRound(NamedTuple):
    """Edit rows (columns) of a matrix, and round them to what is stored.

    Attributes:
        edit: the edit.
        target: safetensors tag of the result.
    """

    edit: EditBlock
    target: str

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel` and `Round`."""
        leaf, found = self.edit.leaf, self.edit.at_once(blocks, where, self.target)
        if found is None:
            rounding = Round(leaf, self.edit.target, self.target, self.edit.device)
            return rounding(self.edit(blocks, where)[0], where)
        result, is_finite = found
        if not is_finite:
            raise NonFiniteError(HINT)
        return {leaf: result}, ()


@dataclass(frozen=True)
class Project:
    """W b + c: [rows, 1] float64 of rows of W."""

    tag: str
    device: str

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        from ctcli.ops.edits import projected

        own = blocks["own"][_slice(where.rows)] if "own" in blocks else None
        found = projected(blocks["weight"], self.tag, blocks["norm"], own, self.device)
        return {"bias": found[:, None]}, ()


@dataclass(frozen=True)
class AsFloat64:
    """All of a vector: [n] float64."""

    leaf: str
    tag: str

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        from ctcli.ops.edits import edited as edit

        bits, _ = edit(blocks[self.leaf], self.tag, "F64")
        return {"value": bits.view("f8").reshape(-1)}, ()


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)
