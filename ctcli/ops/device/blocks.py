"""Blocks of a weight on a device of torch: from arrays to the arithmetic of a format, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ctcli.ops.device.float8 import Float8
from ctcli.ops.device.grouping import Grouping
from ctcli.ops.device.integers import Integers
from ctcli.ops.device.mx import Microscaling
from ctcli.ops.device.nvfp4 import Nvfp4, global_scale
from ctcli.ops.device.ranges import Bounds, best_bounds, errors_of_parts, widest_bounds
from ctcli.ops.device.rounding import from_e4m3, pow2
from ctcli.ops.device.sums import largest_magnitude, sum_of_squares
from ctcli.ops.packing import offset_binary, pack_bytes, pack_words
from ctcli.ops.quantized import QuantizedBlock, Rounding

if TYPE_CHECKING:
    from ctcli.ops.quantized import Array

Format = Float8 | Integers | Nvfp4 | Microscaling
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Torch:
    """See `quantized.Body`."""

    def __init__(self, device: str) -> None:
        self._device = device

    def quantize(
        self, block: Array, tag: str, rounding: Rounding, ranges: Array | None, count: int = 1
    ) -> QuantizedBlock:
        """See `quantized.Body`."""
        weight = self._loaded(block, tag)
        shape = (weight.shape[0], weight.shape[1])
        energies = [sum_of_squares(each) for each in weight.chunk(count)]
        grouping = Grouping(*rounding.tile)
        view, form = grouping.view(weight), _format(rounding, self._device)
        bounds = self._bounds(view, rounding, ranges, form.roundtrip)
        codes, values, scales, marks = _encoded(form, view, bounds)
        flat = grouping.flatten(codes.view(torch.uint8), *shape).cpu().numpy()
        off = grouping.flatten(values, *shape).sub_(weight)
        errors = [sum_of_squares(each) for each in off.chunk(count)]
        tiles = scales.shape[0], scales.shape[2]
        return QuantizedBlock(
            _packed(flat, rounding),
            scales.reshape(tiles).cpu().numpy(),
            marks.reshape(tiles).cpu().numpy(),
            np.array([errors, energies]).T,
        )

    def errors(self, block: Array, tag: str, rounding: Rounding, ranges: Array) -> Array:
        """See `quantized.Body`."""
        view = Grouping(*rounding.tile).view(self._loaded(block, tag))
        roundtrip = _format(rounding, self._device).roundtrip
        assert rounding.search, "there is one"
        found = errors_of_parts(view, self._given(ranges), roundtrip, rounding.search)
        return np.stack([error.to(torch.float64).view(-1).cpu().numpy() for _, error in found])

    def widest(self, block: Array, tag: str, rounding: Rounding) -> Array:
        """See `quantized.Body`."""
        view = Grouping(*rounding.tile).view(self._loaded(block, tag))
        low, high = widest_bounds(view, rounding.spans_zero)
        found: Array = torch.stack((-low.view(-1), high.view(-1))).cpu().numpy()
        return found

    def largest(self, block: Array, tag: str) -> Array:
        """See `quantized.Body`."""
        found: Array = largest_magnitude(self._loaded(block, tag)).cpu().numpy()
        return found

    def _loaded(self, block: Array, tag: str) -> Tensor:
        """The block on the device, as a new float32 tensor."""
        dtype = _DTYPES[tag] if block.dtype.kind == "u" else None
        stored = torch.from_numpy(np.ascontiguousarray(block))
        stored = stored.view(dtype) if dtype else stored
        return stored.to(self._device).to(torch.float32, copy=True)

    def _given(self, ranges: Array) -> Bounds:
        low, high = torch.from_numpy(np.array(ranges, np.float32)).to(self._device)
        return low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)

    def _bounds(
        self,
        view: Tensor,
        rounding: Rounding,
        ranges: Array | None,
        roundtrip: Callable[[Tensor, Bounds], Tensor],
    ) -> Bounds:
        if ranges is not None:
            return self._given(ranges)
        if rounding.search:
            return best_bounds(view, rounding.spans_zero, roundtrip, rounding.search)
        return widest_bounds(view, rounding.spans_zero)


def _format(rounding: Rounding, device: str) -> Format:
    dtype = _DTYPES[rounding.dtype]
    quotient = dtype if rounding.rounds_quotients else None
    match rounding.format:
        case "float8":
            return Float8(dtype, quotient)
        case "integers":
            return Integers(rounding.bits, rounding.symmetric, rounding.signed, dtype, quotient)
        case "mx":
            return Microscaling(rounding.bits, dtype, quotient)
        case "nvfp4":
            largest = torch.tensor([rounding.total], dtype=torch.float32, device=device)
            return Nvfp4(dtype, global_scale(largest, dtype))
        case _:
            raise ValueError(f"{rounding.format} has no arithmetic for devices")


def _encoded(form: Format, view: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of 8 bits, values, scales and marks of a grouped view."""
    match form:
        case Float8():
            scale = form.scale(bounds)
            return *form.encode(view, scale), scale, torch.zeros_like(scale)
        case Integers():
            scale, zero = form.parameters(bounds)
            codes, values = form.encode(view, scale, zero)
            zero = torch.zeros_like(scale) if zero is None else zero
            return codes.to(torch.int8), values, scale, zero
        case Microscaling():
            exponents = form.exponents(bounds)
            return *form.encode(view, exponents), pow2(exponents), exponents.to(torch.float32)
        case Nvfp4():
            scale = form.scale(bounds)
            marks = scale.view(torch.uint8).to(torch.float32)
            return *form.encode(view, scale), from_e4m3(scale) / form.total, marks


def _packed(codes: Array, rounding: Rounding) -> Array:
    """Codes of 8 bits as they are stored: uint8 [rows, bytes]."""
    rows, columns = codes.shape
    if rounding.packed:
        words = pack_words(offset_binary(codes, rounding.bits), rounding.bits)
        return words.view(np.uint8).reshape(rows, math.ceil(columns * rounding.bits / 32) * 4)
    if rounding.format != "integers" and rounding.bits < 8:
        return pack_bytes(codes, rounding.bits)
    return codes
