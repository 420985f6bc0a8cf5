"""How far restored weights are from what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctcli.ops.comparing import Deviation


@dataclass(frozen=True)
class LayerError:
    """Errors of a weight.

    Attributes:
        rms: root of the mean squared error.
        relative: the same over the root mean square of the weight.
        sqnr: signal to quantization noise ratio in dB; None: there is no error.
        largest: largest magnitude of an error.
        excess: the root mean square error of the group of weights (that share a scale) where it is
            largest in units of the largest errors that rounding to the nearest leaves there.
        row: first row of that group.
        column: first column.
    """

    rms: float
    relative: float
    sqnr: float | None
    largest: float
    excess: float
    row: int
    column: int

    def data(self) -> dict[str, Any]:
        """For programs: JSON has no infinities."""
        return {
            key: value if value is None or math.isfinite(value) else str(value)
            for key, value in asdict(self).items()
        }


def layer_error(blocks: Iterable[tuple[int, int, Deviation]]) -> LayerError:
    """The errors of a weight's blocks as one.

    Args:
        blocks: first row and column of each, and its errors; at least one.
    """
    parts = list(blocks)
    count = sum(part.count for _, _, part in parts)
    error = math.fsum(part.error for _, _, part in parts)
    energy = math.fsum(part.energy for _, _, part in parts)
    row, column, worst = max(parts, key=lambda part: part[2].excess)
    relative = math.inf if error else 0.0
    if energy:
        relative = math.sqrt(error / energy)
    return LayerError(
        rms=math.sqrt(error / count) if count else 0.0,
        relative=relative,
        sqnr=-20 * math.log10(relative) if 0 < relative < math.inf else None,
        largest=max(part.largest for _, _, part in parts),
        excess=worst.excess,
        row=row + worst.row,
        column=column + worst.column,
    )
