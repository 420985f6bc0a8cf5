"""A weight of integers in words that stand transposed: what GPTQ and AWQ have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ctcli.formats.sources.decoding import as_matrix, decoded
from ctcli.formats.sources.packed import Groups, Packing, made, shape_tensor
from ctcli.formats.sources.repacking import (
    CheckedScales,
    DecodeWords,
    PackWoven,
    PackZeros,
)
from ctcli.lazy.nodes import Computed, Input, LazyTensor, Shape
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.lazy.unchanged import Unchanged


@dataclass(frozen=True)
class Words:
    """A weight whose tensors are transposed.

    Attributes:
        module: its module.
        shape: [rows, columns].
        packing: how its integers lie in words.
        groups: of its columns.
        codes: I32, [column words, rows], or woven, [columns, row words].
        scales: [groups, rows].
        zeros: I32, [groups, row words].
        order: I32, the group of each column; None: they are in order.
    """

    module: str
    shape: Shape
    packing: Packing
    groups: Groups
    codes: Stored
    scales: Stored
    zeros: Stored
    order: Stored | None = None

    def floats(self, dtype: str) -> Computed:
        """The weight as floats of a dtype."""
        size, together = self.groups.size, self.packing.whole
        width = math.lcm(together, size) if size < self.shape[1] else together
        inputs = {
            "codes": self._codes(width),
            "scale": self._by_groups(self.scales, together, 0),
            "zeros": self._by_groups(self.zeros, self.packing.words(together), 0),
            **self._in_order(),
        }
        kernel = DecodeWords(dtype, self.packing, self.groups, self.scales.spec.dtype)
        return decoded(self.module, inputs, kernel, self.shape, (together, width))

    def stored(self, is_symmetric: bool) -> Mapping[str, LazyTensor]:
        """The tensors of compressed-tensors' pack-quantized, by suffix.

        Args:
            is_symmetric: zero points are left out; all have to be in the middle of their range.
        """
        packing, rows = self.packing, self.shape[0]
        grid = rows, self.groups.count
        zeros = self._by_groups(self.zeros, packing.words(packing.whole), 1)
        scale = {"scale": self._by_groups(self.scales, packing.whole, 1), **self._in_order()}
        found: dict[str, LazyTensor] = {
            "weight_packed": self._packed(),
            "weight_scale": made(
                self.module,
                {"weight_scale": TensorSpec(self.scales.spec.dtype, grid)},
                {**scale, "zeros": zeros} if is_symmetric else scale,
                CheckedScales(packing, self.groups),
                (grid, (packing.whole, 1)),
            ),
            "weight_shape": shape_tensor(self.shape),
        }
        if not is_symmetric:
            points = TensorSpec("I32", (packing.words(rows), self.groups.count))
            found["weight_zero_point"] = made(
                self.module,
                {"weight_zero_point": points},
                {"zeros": zeros},
                PackZeros(packing),
                (grid, (packing.whole, 1)),
            )
        return found

    def _packed(self) -> Computed:
        rows, columns = self.shape
        spec = {"weight_packed": TensorSpec("I32", (rows, self.packing.words(columns)))}
        if self.packing.is_woven:
            codes = {"codes": self._codes(8)}
            return made(self.module, spec, codes, PackWoven(), (self.shape, (8, 8)))
        words = Input(self.codes, as_matrix(self.codes), "transposed")
        shape = spec["weight_packed"].shape
        return made(
            self.module,
            spec,
            {"codes": words},
            Unchanged("weight_packed"),
            ((rows, shape[1]), (1, 1)),
        )

    def _codes(self, width: int) -> Input:
        """How codes run along the weight, so many columns of which belong together."""
        each = (width, 1) if self.packing.is_woven else (self.packing.words(width), 1)
        down = 1 if self.packing.is_woven else self.packing.whole
        return Input(self.codes, as_matrix(self.codes), "transposed", (each[0], down))

    def _by_groups(self, tensor: Stored, down: int, across: int) -> Input:
        """How a tensor [groups, ...] runs along; the arguments are those of `Input.each`."""
        return Input(tensor, as_matrix(tensor), "transposed", (across, down))

    def _in_order(self) -> dict[str, Input]:
        if self.order is None:
            return {}
        return {"order": Input(self.order, (1, self.shape[1]), each=(0, 0))}
