"""Edits of a matrix: a norm's gain, and maps of its columns and rows, in one pass and one rounding.

A linear computes y = W x. For a residual stream in rows, x' = x Q, its readers become W Q, and its
writers Q^T W (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Protocol

from ctcli.jobs import COLUMNS_AT_ONCE
from ctcli.models.architecture import HeadRows
from ctcli.tensors import (
    Derivation,
    NonFiniteError,
    Output,
    Reduction,
    StoredTensor,
    TensorSpec,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_HINT = "Repair the checkpoint; if a result does not fit, start with fuse-norms --dtype float32."


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

    weight: StoredTensor
    offset: float
    bias: StoredTensor | None = None
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

    def granule(self, shape: tuple[int, ...]) -> tuple[int, bool]:
        """Rows that belong together, or columns if that makes the smaller blocks."""
        rows, columns = shape
        together = math.lcm(1, *(each.granule for each in self.rows))
        across = math.lcm(1, *(each.block_size for each in self.columns))
        smaller = together * columns > rows * max(across, COLUMNS_AT_ONCE)
        columnwise = smaller and bool(self.rows)
        return (across, True) if columnwise else (together, False)


@dataclass(frozen=True)
class Arithmetic:
    """How edits are computed.

    Attributes:
        dtype: torch's name of the dtype; None: float64, or float32 where that gives the same.
        device: torch's name of the device.
    """

    dtype: str | None
    device: str

    def dtype_for(self, source: StoredTensor, edit: Edit) -> torch.dtype:
        """What to compute an edit in."""
        import torch

        if self.dtype:
            named: torch.dtype = getattr(torch, self.dtype)
            return named
        # The product of two 16-bit floats has at most 22 significant bits, and float32 has 24.
        gain = edit.gain
        is_plain = not (edit.columns or edit.rows or (gain and (gain.offset or gain.bias)))
        tags = {source.spec.dtype, gain.weight.spec.dtype if gain else "BF16"}
        return torch.float32 if is_plain and tags <= {"BF16", "F16"} else torch.float64


def edited(
    name: str,
    source: StoredTensor,
    edit: Edit,
    dtype: str,
    arithmetic: Arithmetic,
    bias: StoredTensor | None = None,
    output: str = "weight",
) -> Derivation:
    """A matrix after an edit; where a norm's bias goes into the linear's, that too, as `bias`.

    Args:
        name: its module.
        source: the stored tensor, of any shape; a vector is a single row.
        edit: what happens to it.
        dtype: safetensors tag of the result.
        arithmetic: how to compute.
        bias: the linear's bias, to which the gain's bias is added.
        output: local name of the result.
    """
    shape = source.spec.shape
    matrix = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    source = replace(source, spec=TensorSpec(source.spec.dtype, matrix))
    granule, columnwise = edit.granule(matrix)
    whole = granule if len(shape) > 1 else None
    outputs = {output: Output(TensorSpec(dtype, shape), whole)}
    needs: list[Reduction] = []
    if edit.gain:
        needs.append(vector(edit.gain.weight))
        if edit.gain.bias:
            assert not columnwise, "what reads a norm writes no stream"
            outputs["bias"] = Output(TensorSpec(dtype, shape[:1]), granule)
            needs += map(vector, [edit.gain.bias, *([bias] if bias else [])])
    compute = partial(_edit_block, source, edit, dtype, arithmetic, columnwise, output)
    return Derivation(name, source, granule, outputs, compute, tuple(needs), columnwise)


def edited_bias(
    name: str, source: StoredTensor, edit: Edit, dtype: str, arithmetic: Arithmetic
) -> Derivation:
    """A linear's bias [rows] after the row maps of an edit, as output `bias`."""
    rows = source.spec.shape[0]
    column = replace(source, spec=TensorSpec(source.spec.dtype, (rows, 1)))
    only_rows = Edit(rows=edit.rows)
    granule, _ = only_rows.granule((rows, 1))
    outputs = {"bias": Output(TensorSpec(dtype, (rows,)), granule)}
    compute = partial(_edit_bias, column, only_rows, dtype, arithmetic)
    return Derivation(name, column, granule, outputs, compute)


def constant(
    name: str, output: str, spec: TensorSpec, value: float, source: StoredTensor
) -> Derivation:
    """A tensor of equal values; `source` is any stored tensor of the checkpoint, not used."""
    nothing = replace(source, spec=TensorSpec("U8", (1, 1)))
    return Derivation(
        name, nothing, 1, {output: Output(spec, None)}, partial(_fill, output, spec, value)
    )


@cache
def vector(tensor: StoredTensor) -> Reduction:
    """All of a stored vector: [n] float64."""
    row = TensorSpec(tensor.spec.dtype, (1, *tensor.spec.shape))
    return Reduction((replace(tensor, spec=row),), _as_float64, "sum", _as_is)


@lru_cache(maxsize=256)
def repeated(once: Map, size: int) -> Map:
    """The block-diagonal map of so many coordinates: some of its blocks, or more of them."""
    from ctcli.ops.rotation import Rotation

    if size == once.size or not isinstance(once, Rotation):
        return once
    return replace(once, repeats=size // once.block_size)


def _edit_block(
    source: StoredTensor,
    edit: Edit,
    dtype: str,
    arithmetic: Arithmetic,
    columnwise: bool,
    output: str,
    block: Tensor,
    start: int,
    values: tuple[Tensor, ...],
) -> tuple[Mapping[str, Tensor], Tensor]:
    import torch

    x = block.to(arithmetic.device).to(arithmetic.dtype_for(source, edit))
    first_row, first_column = (0, start) if columnwise else (start, 0)
    found = {}
    if edit.gain:
        gain, *biases = (value.to(x) for value in values)
        if biases:
            bias = x @ biases[0]
            if biases[1:]:
                bias += biases[1][start : start + len(bias)]
            found["bias"] = _map_rows(edit, bias.unsqueeze(1), first_row).squeeze(1)
        gain = (gain + edit.gain.offset)[first_column : first_column + x.shape[1]]
        x = x / gain if edit.gain.divides else x.mul_(gain)
    for each in edit.columns:
        x = repeated(each, x.shape[1]).apply(x)
    found[output] = _map_rows(edit, x, first_row)
    return _stored(found, dtype), torch.zeros(0)


def _edit_bias(
    source: StoredTensor,
    edit: Edit,
    dtype: str,
    arithmetic: Arithmetic,
    block: Tensor,
    start: int,
    _values: tuple[Tensor, ...],
) -> tuple[Mapping[str, Tensor], Tensor]:
    import torch

    x = block.to(arithmetic.device).to(arithmetic.dtype_for(source, edit))
    return _stored({"bias": _map_rows(edit, x, start).squeeze(1)}, dtype), torch.zeros(0)


def _map_rows(edit: Edit, x: Tensor, first: int) -> Tensor:
    for each in edit.rows:
        x = each.apply(x, first)
    return x


def _stored(found: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The one rounding, to `dtype`.

    Raises:
        NonFiniteError: what was read is not finite, or the result is too large for the dtype.
    """
    from ctcli.ops.sums import largest_magnitude

    rounded = {name: tensor.to(torch_dtype(dtype)) for name, tensor in found.items()}
    if not all(
        largest_magnitude(tensor).isfinite() for tensor in rounded.values() if tensor.numel()
    ):
        raise NonFiniteError(_HINT)
    return {name: tensor.cpu() for name, tensor in rounded.items()}


def _fill(
    output: str, spec: TensorSpec, value: float, _block: Tensor, _start: int, _values: object
) -> tuple[Mapping[str, Tensor], Tensor]:
    import torch

    return {output: torch.full(spec.shape, value, dtype=torch_dtype(spec.dtype))}, torch.zeros(0)


def _as_float64(block: Tensor, _: Tensor | None) -> Tensor:
    import torch

    return block.to(torch.float64, copy=True).view(-1)  # the block's memory is used again


def _as_is(combined: Tensor, _: Tensor | None) -> Tensor:
    return combined
