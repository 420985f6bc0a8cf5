"""Edits of a matrix: a norm's gain, and maps of its columns and rows, in one pass and one rounding.

A linear computes y = W x. For a residual stream in rows, x' = x Q, its readers become W Q, and its
writers Q^T W (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Literal, Protocol

from ctcli.lazy.dtypes import SHORT_FLOATS
from ctcli.lazy.tensors import (
    Derivation,
    LazyTensor,
    Matrix,
    NonFiniteError,
    Output,
    Reduction,
    TensorSpec,
    matrix_of,
    torch_dtype,
)
from ctcli.models.architecture import HeadRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HINT = "Repair the checkpoint; if a result does not fit, start with fuse-norms --dtype float32."


class Map(Hashable, Protocol):
    """A square matrix M that mixes coordinates: a rotation, or the subtraction of the mean."""

    @property
    def size(self) -> int:
        """Coordinates it works on."""

    @property
    def block_size(self) -> int:
        """Neighbouring coordinates that are mixed with each other, and no others."""

    def apply(self, x: Tensor) -> Tensor:
        """X M for x [rows, size]."""

    def apply_left(self, w: Tensor) -> Tensor:
        """M^T w for w [size, columns]."""


@dataclass(frozen=True)
class Gain:
    """What a norm does to its normalised input before linears read it: n -> n * gain + bias.

    Attributes:
        weight: the stored gain, [n].
        offset: what the model adds to it.
        bias: [n], if it moves into the linears' biases.
        divides: for a norm's own bias that stays: it is divided by the gain.
    """

    weight: Matrix
    offset: float
    bias: Matrix | None = None
    divides: bool = False


@dataclass(frozen=True, eq=False)
class RowMap:
    """M^T W on all rows, or on those of some heads."""

    map: Map
    heads: HeadRows | None = None

    @property
    def granule(self) -> int:
        """Rows that belong together."""
        return self.heads.stride if self.heads else self.map.block_size

    def apply(self, w: Tensor, first: int) -> Tensor:
        """The map of some whole granules, w [rows, columns], of which `first` is the first row."""
        if self.heads is None:
            return repeated(self.map, w.shape[0]).apply_left(w)
        heads, columns = self.heads, w.shape[1]
        cells = w.view(-1, heads.stride, columns)
        begin = heads.first // heads.stride - first // heads.stride
        place = slice(heads.first % heads.stride, heads.first % heads.stride + heads.size)
        chosen = cells[max(begin, 0) : max(begin + heads.heads, 0), place]
        if chosen.numel():
            flat = chosen.reshape(-1, columns)
            chosen.copy_(repeated(self.map, flat.shape[0]).apply_left(flat).view(chosen.shape))
        return w


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to a matrix: its columns times a gain, then the maps."""

    gain: Gain | None = None
    columns: tuple[Map, ...] = ()
    rows: tuple[RowMap, ...] = ()


@dataclass(frozen=True)
class Arithmetic:
    """How edits are computed.

    Attributes:
        precision: `float32` or `float64`; `auto` is float32 for tensors of 16-bit floats, float64
            for wider ones; `exact` is float64, or float32 where that gives the same.
        device: torch's name of the device.
    """

    precision: Literal["exact", "auto", "float32", "float64"]
    device: str

    def of(self, tensor: TensorSpec) -> Arithmetic:
        """With `auto` decided for a tensor."""
        if self.precision != "auto":
            return self
        return replace(self, precision="float32" if tensor.dtype in SHORT_FLOATS else "float64")

    def dtype_for(self, matrix: Matrix, edit: Edit) -> torch.dtype:
        """What to compute an edit in."""
        import torch

        if self.precision == "exact":
            is_float32 = self.is_exact_in_float32(matrix, edit)
        else:
            is_float32 = self.precision == "float32"
        return torch.float32 if is_float32 else torch.float64

    @staticmethod
    def is_exact_in_float32(matrix: Matrix, edit: Edit) -> bool:
        """Whether no bit is lost before the last rounding (below 2**-126, the last one may be).

        The product of two 16-bit floats has at most 22 significant bits, and float32 has 24.
        """
        gain, parts = edit.gain, [matrix]
        is_plain = not (edit.columns or edit.rows)
        if gain:
            parts.append(gain.weight)
            is_plain = is_plain and not gain.offset
        return is_plain and all(
            m.compute is None and m.source.spec.dtype in SHORT_FLOATS for m in parts
        )


def edited(matrix: Matrix, edit: Edit, arithmetic: Arithmetic) -> Matrix:
    """A matrix after an edit, not rounded."""
    if not (edit.gain or edit.columns or edit.rows):
        return matrix
    together, across = matrix.granule
    granule = (
        math.lcm(together, *(each.granule for each in edit.rows)),
        math.lcm(across, *(each.block_size for each in edit.columns)),
    )
    gains = (vector(edit.gain.weight),) if edit.gain else ()
    compute = partial(_edit_block, matrix, edit, arithmetic)
    return replace(matrix, granule=granule, compute=compute, needs=(*matrix.needs, *gains))


def bias_of(
    weight: Matrix, norm_bias: Matrix, bias: Matrix | None, arithmetic: Arithmetic
) -> Matrix:
    """A linear's bias [rows, 1] that takes in the bias of the norm it reads: W b_norm + b.

    Args:
        weight: W before the norm's gain goes into it.
        norm_bias: [1, columns].
        bias: the linear's own, [1, rows].
        arithmetic: how to compute.
    """
    rows, columns = weight.shape
    added = (norm_bias, *([bias] if bias else []))
    return Matrix(
        weight.source,
        (rows, 1),
        (weight.granule[0], columns),
        partial(_project, weight, arithmetic),
        (*weight.needs, *map(vector, added)),
    )


def column_of(bias: LazyTensor) -> Matrix:
    """A bias [rows] as a matrix [rows, 1], so that maps of rows apply."""
    found = matrix_of(bias)
    assert found, "constant biases are not edited"
    if found.compute:
        return found
    # A vector, as it is stored or in another dtype, is a row so far.
    rows = math.prod(found.shape)
    stored = replace(found.source, spec=TensorSpec(found.source.spec.dtype, (rows, 1)))
    return Matrix(stored, (rows, 1))


def rounded(name: str, output: str, matrix: Matrix, spec: TensorSpec) -> Derivation:
    """A matrix as a tensor.

    Args:
        name: its module.
        output: the tensor's name in the module.
        matrix: what to write.
        spec: dtype and shape of the tensor.
    """
    is_vector = len(spec.shape) == 1 and matrix.shape[0] == 1
    return Derivation(
        name,
        matrix,
        matrix.granule[matrix.is_columnwise],
        {output: Output(spec, is_whole=is_vector)},
        partial(_round, output, spec),
        only_rounds=True,
    )


@cache
def vector(matrix: Matrix) -> Reduction:
    """All of a vector [1, n]: [n] float64."""
    return Reduction((matrix,), _as_float64, "sum", _as_is)


@lru_cache(maxsize=256)
def repeated(once: Map, size: int) -> Map:
    """The block-diagonal map of so many coordinates: some of its blocks, or more of them."""
    from ctcli.ops.rotation import Rotation

    if size == once.size or not isinstance(once, Rotation):
        return once
    return replace(once, repeats=size // once.block_size)


def _edit_block(
    matrix: Matrix,
    edit: Edit,
    arithmetic: Arithmetic,
    stored: Tensor,
    first_row: int,
    first_column: int,
    values: tuple[Tensor, ...],
) -> Tensor:
    """See `Matrix.compute`."""
    x = stored
    if matrix.compute:
        x = matrix.compute(stored, first_row, first_column, values[: len(matrix.needs)])
    x = x.to(arithmetic.device).to(arithmetic.dtype_for(matrix, edit))
    if edit.gain:
        gain = (values[-1].to(x) + edit.gain.offset)[first_column : first_column + x.shape[1]]
        x = x / gain if edit.gain.divides else x.mul_(gain)
    for each in edit.columns:
        x = repeated(each, x.shape[1]).apply(x)
    for rows in edit.rows:
        x = rows.apply(x, first_row)
    return x


def _project(
    weight: Matrix,
    arithmetic: Arithmetic,
    stored: Tensor,
    first_row: int,
    first_column: int,
    values: tuple[Tensor, ...],
) -> Tensor:
    """See `Matrix.compute`."""
    n = len(weight.needs)
    x = weight.compute(stored, first_row, first_column, values[:n]) if weight.compute else stored
    norm_bias, *own = values[n:]
    x = x.to(arithmetic.device, norm_bias.dtype)
    projected = x @ norm_bias.to(x)
    if own:
        projected += own[0][first_row : first_row + len(projected)].to(x)
    return projected.unsqueeze(1)


def _round(
    output: str, spec: TensorSpec, block: Tensor, _start: int, _values: tuple[Tensor, ...]
) -> tuple[Mapping[str, Tensor], Sequence[float]]:
    """The one rounding; there is nothing to measure.

    Raises:
        NonFiniteError: what was read is not finite, or the result is too large for the dtype.
    """
    from ctcli.ops.rounding import round_once
    from ctcli.ops.sums import largest_magnitude

    result = round_once(block, torch_dtype(spec.dtype))
    if result.numel() and not largest_magnitude(result).isfinite():
        raise NonFiniteError(HINT)
    return {output: result.cpu()}, ()


def _as_float64(block: Tensor, _: Tensor | None) -> Tensor:
    import torch

    return block.to(torch.float64, copy=True).view(-1)  # the block's memory is used again


def _as_is(combined: Tensor, _: Tensor | None) -> Tensor:
    return combined
