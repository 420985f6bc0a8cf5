"""Which elements of a weight share a scale: views that put each group along some dimensions.

A grouped view is three- or four-dimensional and a group's value (its largest magnitude, its
scale) has size 1 in the dimensions of the group, so that arithmetic between them broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctcli.ops.device.sums import largest_along


@dataclass(frozen=True)
class Grouping:
    """Tiles of `rows` x `columns` elements; None stands for all there are.

    Rows that are given together must be whole tiles, except the last ones of the weight: they
    are padded with zeros, as are columns.
    """

    rows: int | None
    columns: int | None

    def view(self, weight: Tensor) -> Tensor:
        """[rows, columns] -> [row tiles, tile rows, column tiles, tile columns], padded."""
        rows, columns = weight.shape
        height, width = self.rows or rows, self.columns or columns
        missing = (-columns % width, -rows % height)
        if any(missing):
            weight = pad(weight, (0, missing[0], 0, missing[1]))
        down, across = weight.shape[0] // height, weight.shape[1] // width
        return weight.view(down, height, across, width)

    def flatten(self, view: Tensor, rows: int, columns: int) -> Tensor:
        """Undo `view`: drop the padding."""
        down, height, across, width = view.shape
        return view.reshape(down * height, across * width)[:rows, :columns].contiguous()

    @staticmethod
    def amax(view: Tensor) -> Tensor:
        """Largest magnitude of each group: [row tiles, 1, column tiles, 1]."""
        return largest_along(view, (1, 3))

    @staticmethod
    def bounds(view: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each group, zero included."""
        low = view.amin(3, keepdim=True).amin(1, keepdim=True).clamp_(max=0.0)
        high = view.amax(3, keepdim=True).amax(1, keepdim=True).clamp_(min=0.0)
        return low, high

    @staticmethod
    def sum(view: Tensor) -> Tensor:
        """Sum of each group, in float32."""
        return torch.sum(view, dim=(1, 3), keepdim=True)
