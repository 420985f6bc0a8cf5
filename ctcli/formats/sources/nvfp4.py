"""NVFP4 codes of NVIDIA's tools: their arithmetic, and tensors that are named without a module.

Packed experts: `experts.gate_up_proj` U8 beside `gate_up_proj_weight_scale` E4M3 and
`gate_up_proj_weight_scale_2` F32, one number or one for each expert; the first dimension of each
expert's matrix is packed where its scales say so: [E, in / 2, out] with scales [E, in / 16, out].
Raw: `<name>` U8 [..., N, K / 2], `<name>.scale` E4M3, `<name>.scale2` F32. Layouts:
https://github.com/NVIDIA/Model-Optimizer, `modelopt/torch/export/quant_utils.py`; AutoRound's
`utils/model_free_utils.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import (
    Scaled,
    decoded,
    granule_of,
    scale_input,
    viewed,
    whole_input,
)
from ctcli.formats.sources.nvfp4_experts import TransposedExperts
from ctcli.lazy.nodes import Computed, Input, LazyTensor, Shape, Stacked
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.modules import Module

_ROLES = ("gate_up_proj", "down_proj")
_RAW_BESIDE = ("input_amax", "weight_amax", "original_shape", "input_scale")
_REFUSAL = "compressed-tensors has no tensors of packed experts"


class RawNvfp4(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """Packed experts below a module, and a tensor that has the module's own name."""
        for role in _ROLES:
            packed = source.modules.get(module.tensor(role))
            weight = part(packed, "") if packed else None
            leaves = [f"{role}_weight_scale", f"{role}_weight_scale_2"]
            if weight and part(module, leaves[0]) and weight.spec.dtype == "U8":
                scales = [part(module, leaf) for leaf in leaves]
                leaves += [leaf for leaf in (f"{role}_input_scale",) if leaf in module.parts]
                names = [module.tensor(leaf) for leaf in leaves]
                coded = _read(module.tensor(role), weight, scales, names, source)
                yield _apart(coded, module, role, weight, source)
        scales = [part(module, "scale"), part(module, "scale2")]
        weight = _own(module, source)
        if weight and scales[0] and weight.spec.dtype == "U8":
            _check_shape(module, weight)
            leaves = ["scale", "scale2", *(leaf for leaf in _RAW_BESIDE if leaf in module.parts)]
            names = [module.tensor(leaf) for leaf in leaves]
            yield _read(module.name, weight, scales, names, source)


def _apart(
    coded: Coded, module: Module[LazyTensor], role: str, weight: Stored, source: Source
) -> Coded:
    """Packed experts, with the linears that they are made of where these can be told."""
    leaves = ("weight_scale", "weight_scale_2", "input_scale")
    scale, total, inputs = (part(module, f"{role}_{leaf}") for leaf in leaves)
    assert scale, "it was read"
    assert total, "it was read"
    if weight.spec.shape[1] != 8 * scale.spec.shape[1] or not isinstance(coded.weight, Stacked):
        return coded
    if inputs and math.prod(inputs.spec.shape) not in (1, weight.spec.shape[0]):
        return coded
    experts = TransposedExperts(module.name, role, weight, scale, total, inputs, source)
    if problem := experts.problem():
        return replace(coded, refusal=problem)
    linears = tuple(experts.linears())
    weights = {each.name: each.weight for each in linears if isinstance(each.weight, Computed)}
    floats = replace(coded.weight, linears=weights)
    return replace(coded, weight=floats, refusal="", linears=linears)


def nvfp4_inputs(
    weight: Stored, scale: Stored, total: Stored
) -> tuple[dict[str, Input], Scaled, Shape]:
    """How codes that are packed along columns are read, and the shape of the weight.

    Args:
        weight: U8 [N, K / 2].
        scale: E4M3 [N, K / group].
        total: one number.

    Raises:
        SourceError: these do not go together.
    """
    rows, columns = shape = weight.spec.shape[0], 2 * weight.spec.shape[1]
    group = group_of(scale, shape)
    if group % 2:
        raise SourceError(f"its scales {list(scale.spec.shape)} are not those of pairs of codes")
    inputs = {
        "codes": Input(weight, (rows, columns // 2), each=(1, group // 2)),
        "scale": scale_input(scale, (1, group), shape),
        "total": whole_input(total),
    }
    return inputs, Scaled("F32", 4, "e2m1", "F8_E4M3", (1, group)), shape


def group_of(scale: Stored, shape: Shape) -> int:
    """Columns that share a scale.

    Args:
        scale: [N, K / group].
        shape: [N, K].

    Raises:
        SourceError: it has another shape.
    """
    rows, columns = shape
    grid = scale.spec.shape
    if len(grid) != 2 or grid[0] != rows or not grid[1] or columns % grid[1]:
        raise SourceError(f"its scales {list(grid)} are not those of its weight {list(shape)}")
    return columns // grid[1]


def _own(module: Module[LazyTensor], source: Source) -> Stored | None:
    """The tensor that has a module's name."""
    if "" in module.parts:
        return part(module, "")
    parent, _, leaf = module.name.rpartition(".")
    above = source.modules.get(parent)
    return part(above, leaf) if above else None


def _check_shape(module: Module[LazyTensor], weight: Stored) -> None:
    said = part(module, "original_shape")
    if said is None:
        return
    size = {"I64": "q", "I32": "i"}.get(said.spec.dtype)
    shape = [*weight.spec.shape[:-1], 2 * weight.spec.shape[-1]]
    content = said.file.read(said.start, said.spec.nbytes)
    if size is None or [*struct.unpack(f"<{math.prod(said.spec.shape)}{size}", content)] != shape:
        raise SourceError(f"its original_shape is not that of its codes, {shape}")


def _read(
    name: str,
    weight: Stored,
    scales: Sequence[Stored | None],
    beside: Sequence[str],
    source: Source,
) -> Coded:
    """A tensor of two or three dimensions.

    Args:
        name: its name.
        weight: the codes.
        scales: of groups, and of all.
        beside: the names of all tensors that go with it.
        source: the rest.
    """
    scale, total = scales
    if total is None or scale is None or (scale.spec.dtype, total.spec.dtype) != ("F8_E4M3", "F32"):
        raise SourceError("NVFP4 has a scale in F8_E4M3 and another in F32")
    shape, grid = weight.spec.shape, scale.spec.shape
    count = shape[0] if len(shape) == 3 else 1
    totals = math.prod(total.spec.shape)
    if len(shape) not in (2, 3) or len(grid) != len(shape) or totals not in (1, count):
        message = f"its codes {list(shape)}, scales {list(grid)} and {list(total.spec.shape)}"
        raise SourceError(f"{message} do not go together")
    pairs_rows = grid[-1] == shape[-1] and grid[-2] * 8 == shape[-2]
    parts = []
    for number in range(count):
        codes, own = _piece(weight, number, count), _piece(scale, number, count)
        one = Stored(TensorSpec("F32", (1,)), total.file, total.start + 4 * number * (totals > 1))
        module = f"{name}.{number}" if len(shape) == 3 else name
        parts.append(_part(module, codes, own, one, source.dtype, pairs_rows))
    spec = TensorSpec(source.dtype, (*shape[:-2], *parts[0].spec.shape))
    floats = Stacked(spec, tuple(parts)) if len(shape) == 3 else parts[0]
    method = "NVFP4, in packed experts" if len(shape) == 3 else "NVFP4"
    return Coded(name, method, (name, *beside), floats, is_exact=False, refusal=_REFUSAL)


def _part(
    module: str, codes: Stored, scale: Stored, total: Stored, dtype: str, pairs_rows: bool
) -> Computed:
    if not pairs_rows:
        inputs, kernel, shape = nvfp4_inputs(codes, scale, total)
        granule = granule_of(kernel.tile, shape, 2)
        return decoded(module, inputs, kernel, shape, granule, dtype)
    rows, columns = shape = 2 * codes.spec.shape[0], codes.spec.shape[1]
    inputs = {
        "codes": Input(codes, (rows // 2, columns), each=(8, 1)),
        "scale": Input(scale, (rows // 16, columns), each=(1, 1)),
        "total": whole_input(total),
    }
    kernel = Scaled("F32", 4, "e2m1", "F8_E4M3", (16, 1), pairs_rows=True)
    return decoded(module, inputs, kernel, shape, (16, 1), dtype)


def _piece(tensor: Stored, number: int, count: int) -> Stored:
    """One of so many matrices of a tensor."""
    shape = tensor.spec.shape[-2:]
    piece = viewed(tensor, tensor.spec.dtype, shape)
    assert piece.spec.nbytes * count == tensor.spec.nbytes, "it has so many"
    return Stored(piece.spec, tensor.file, tensor.start + number * piece.spec.nbytes)


RAW_NVFP4 = RawNvfp4()
