"""Subtracting the mean over the residual stream, as a map of the same kind as a rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Centring:
    """M = I - 1 1^T / n: what LayerNorm does first, so that doing it before changes nothing.

    Attributes:
        size: n.
    """

    size: int

    @property
    def block_size(self) -> int:
        """Coordinates that are mixed."""
        return self.size

    def apply(self, x: Tensor) -> Tensor:
        """X M for x [rows, n]."""
        return x - x.mean(1, keepdim=True)

    def apply_left(self, w: Tensor) -> Tensor:
        """M^T w for w [n, columns]."""
        return w - w.mean(0, keepdim=True)
