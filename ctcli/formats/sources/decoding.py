"""Nodes that turn stored codes into floats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ctcli.lazy.nodes import (
    Axis,
    Computed,
    Input,
    Node,
    NonFiniteError,
    Output,
    Shape,
    Unrounded,
    Where,
    matrix_shape,
    preferred_axis,
)
from ctcli.lazy.tensors import Stored, TensorSpec

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks
    from ctcli.ops.decoding import Codes, Elements

HINT = "A code or a scale is NaN or infinite, or too large: repair the checkpoint."
Table = Literal["e4m3", "e2m1", "e2m3", "e3m2", "signed", "unsigned", "offset"]


@dataclass(frozen=True)
class Decoding(ABC):
    """Decode rows (columns) of a weight: a kernel, see `lazy.nodes.Kernel`.

    Attributes:
        target: safetensors tag of the floats that come out, rounded once; F32 is not rounded.
    """

    target: str

    @abstractmethod
    def codes(self, blocks: Blocks, where: Where) -> Codes:
        """The codes of these rows (columns), with their scales; several rows may be one of it."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: something of it is not finite.
        """
        from ctcli.ops.decoding import decoded

        codes, shape = self.codes(blocks, where), (len(where.rows), len(where.columns))
        columns = shape[0] * shape[1] // max(1, len(codes.stream))
        found, is_finite = decoded(codes, columns, self.target)
        if not is_finite:
            raise NonFiniteError(HINT)
        return {"weight": found.reshape(shape)}, ()


@dataclass(frozen=True)
class Scaled(Decoding):
    """Codes in rows, one behind the other, with a scale for each tile.

    Inputs: `codes`; `scale`; perhaps `zero`, the zero points as numbers; perhaps `total`, a scale
    of all; perhaps `factor`, what the columns are multiplied by at last.

    Attributes:
        bits: of a code.
        table: what codes stand for; `offset` are integers less half their range.
        scale: safetensors tag of the scales; U8 are exponents.
        tile: rows and columns that share one.
        zero: safetensors tag of the zero points.
        divides: the scale of all divides the others, rather than multiplies them.
        part: rows after which tiles begin anew; 0: they do not.
        factor: safetensors tag of the factors.
        pairs_rows: four-bit codes share a byte with those of the next row, not the next column.
    """

    bits: int
    table: Table
    scale: str
    tile: Shape
    zero: str = "I8"
    divides: bool = False
    part: int = 0
    factor: str = "F32"
    pairs_rows: bool = False

    def codes(self, blocks: Blocks, where: Where) -> Codes:  # noqa: ARG002 (kernels share it)
        """See `Decoding`."""
        import numpy as np

        from ctcli.ops import decoding

        scales = decoding.scales_of(blocks["scale"], self.scale)
        if "total" in blocks:
            total = blocks["total"].reshape(-1).view(np.float32)[0]
            scales = scales / total if self.divides else scales * total
        zeros = blocks.get("zero")
        if zeros is not None:
            zeros = zeros.view(np.int8).astype(np.float32)
        stream, tile = np.ascontiguousarray(blocks["codes"]), self.tile
        if self.part:
            row = np.arange(len(stream))
            down = -(-self.part // tile[0])
            scales = scales[row // self.part * down + row % self.part // tile[0]]
            tile = (1, tile[1])
        stream = stream.view(np.uint8).reshape(len(stream), -1)
        elements, bits = elements_of(self.table, self.bits), self.bits
        if self.pairs_rows:
            stream, bits = decoding.row_pairs(stream), 8
        factors = blocks.get("factor")
        if factors is not None:
            factors = decoding.scales_of(factors.reshape(-1), self.factor)
        return decoding.Codes(stream, bits, elements, scales, zeros, tile, factors)


def elements_of(name: Table, bits: int) -> Elements:
    """What the codes of a format stand for."""
    from ctcli.ops import decoding

    if name == "e4m3":
        return decoding.e4m3_elements()
    if name == "e2m1":
        return decoding.e2m1_elements()
    if name in ("e2m3", "e3m2"):
        return decoding.float6_elements(int(name[1]))
    if name == "signed":
        return decoding.signed_elements(bits)
    return decoding.integer_elements(bits, 1 << (bits - 1) if name == "offset" else 0)


def decoded(
    module: str,
    inputs: Mapping[str, Input],
    kernel: Decoding,
    shape: Shape,
    granule: Shape = (1, 1),
    dtype: str | None = None,
    axis: Axis | None = None,
) -> Computed:
    """A weight as floats: rounded, with what it is the rounding of.

    Args:
        module: its module.
        inputs: what the kernel reads.
        kernel: decodes.
        shape: [rows, columns] of the weight.
        granule: rows, and columns, that belong together.
        dtype: safetensors tag of the result; None: the kernel's target.
        axis: the direction in which it runs; None: that of the smaller blocks.
    """
    axis = preferred_axis(shape, granule) if axis is None else axis
    alike = _alike(kernel, dtype or kernel.target, shape)
    node = Node(
        key=f"{module}/weight/dequantize",
        module=module,
        shape=shape,
        inputs=inputs,
        outputs=alike.outputs,
        kernel=alike.kernel,
        granule=granule,
        axis=axis,
        before=alike.before,
    )
    return Computed(node, "weight")


class _Alike(NamedTuple):
    """What weights of one shape and layout have in common: many of a model are alike."""

    outputs: Mapping[str, Output]
    kernel: Decoding
    before: Unrounded


@lru_cache(maxsize=256)
def _alike(kernel: Decoding, tag: str, shape: Shape) -> _Alike:
    exact, outputs = ({"weight": Output(TensorSpec(each, shape))} for each in ("F32", tag))
    before = Unrounded("/decode", exact, replace(kernel, target="F32"))
    return _Alike(outputs, replace(kernel, target=tag), before)


def scale_input(scale: Stored, tile: Shape, shape: Shape) -> Input:
    """How scales of tiles run along a weight.

    Args:
        scale: [row tiles, column tiles], or so many elements in other shapes.
        tile: rows and columns that share one.
        shape: of the weight.
    """
    grid = grid_of(tile, shape)
    return Input(scale, grid, each=(int(tile[0] < shape[0]), int(tile[1] < shape[1])))


def whole_input(tensor: Stored) -> Input:
    """A few numbers that all of a weight needs."""
    return Input(tensor, as_matrix(tensor), each=(0, 0))


def factor_input(tensor: Stored, granule: Shape) -> Input:
    """What the columns of a weight are multiplied by, [columns]."""
    return Input(tensor, as_matrix(tensor), each=(0, granule[1]))


def grid_of(tile: Shape, shape: Shape) -> Shape:
    """Rows and columns of the tiles that cover a matrix."""
    return -(-shape[0] // tile[0]), -(-shape[1] // tile[1])


def granule_of(tile: Shape, shape: Shape, per_byte: int = 1) -> Shape:
    """Rows and columns that belong together where tiles share a scale and a byte holds codes."""
    height = tile[0] if tile[0] < shape[0] else 1
    width = tile[1] if tile[1] < shape[1] else 1
    return height, width if width % per_byte == 0 else width * per_byte


def viewed(tensor: Stored, dtype: str, shape: Sequence[int]) -> Stored:
    """The same bytes taken for another tensor."""
    return Stored(TensorSpec(dtype, tuple(shape)), tensor.file, tensor.start)


def as_matrix(tensor: Stored) -> Shape:
    """[rows, columns] of a tensor."""
    return matrix_shape(tensor.spec.shape)
