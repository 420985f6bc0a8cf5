"""Which weights of a row are kept: the largest in magnitude; of equals the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.rewrites.surgery.kernels import Round

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctcli.lazy.nodes import Block, Blocks, Where

_GROUP, _KEPT = 4, 2


@dataclass(frozen=True)
class Sparsity:
    """How many weights stay.

    Attributes:
        density: share of each row that does; None: two of every four neighbours.
    """

    density: float | None

    @property
    def words(self) -> str:
        """For people."""
        return "2:4" if self.density is None else f"{100 * self.density:g} % of each row"

    @property
    def group(self) -> int | None:
        """Columns that belong together; None: all."""
        return _GROUP if self.density is None else None

    def fits(self, columns: int) -> bool:
        """Whether rows of so many columns consist of whole groups."""
        return self.density is not None or columns % _GROUP == 0

    def kept(self, columns: int) -> int:
        """How many weights of a group stay, or of a row of so many columns."""
        return _KEPT if self.density is None else max(1, round(self.density * columns))

    def excess(self, values: Block) -> int:
        """How many groups, or whole rows, have more values that are not zero.

        Args:
            values: [rows, columns], floats.
        """
        import numpy as np

        rows, columns = values.shape
        if not values.size:
            return 0
        counts = np.count_nonzero(values.reshape(rows, -1, self.group or columns), axis=2)
        return int((counts > self.kept(columns)).sum())


@dataclass(frozen=True)
class Prune:
    """Keep the largest weights; zeros, which are positive, replace the others.

    Attributes:
        leaf: the input's name, and the output's.
        tag: safetensors tag of the blocks.
        sparsity: how many stay.
    """

    leaf: str
    tag: str
    sparsity: Sparsity

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`."""
        import numpy as np

        block = blocks[self.leaf]
        magnitudes = block & 0x7FFF if self.tag in ("BF16", "F16") else np.abs(block)
        keeps = _of_fours if self.sparsity.density is None else _of_rows
        mask = keeps(magnitudes, self.sparsity.kept(block.shape[1]))
        return {self.leaf: np.where(mask, block, block.dtype.type(0))}, ()


@dataclass(frozen=True)
class PruneAndRound:
    """Prune, and round to what is stored.

    Attributes:
        prune: the pruning.
        target: safetensors tag of the result.
    """

    prune: Prune
    target: str

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel` and `Round`."""
        leaf, tag = self.prune.leaf, self.prune.tag
        rounding = Round(leaf, tag, self.target, "cpu")
        return rounding(self.prune(blocks, where)[0], where)


def _of_fours(magnitudes: Block, kept: int) -> NDArray[np.bool_]:
    """In groups of four, those that win so many of their three comparisons or more."""
    import numpy as np

    fours = magnitudes.reshape(len(magnitudes), -1, _GROUP)
    wins = np.zeros(fours.shape, np.int8)
    for i in range(_GROUP):
        for j in range(i + 1, _GROUP):
            first = fours[..., i] >= fours[..., j]
            wins[..., i] += first
            wins[..., j] += ~first
    mask: NDArray[np.bool_] = wins >= _GROUP - kept
    return mask.reshape(magnitudes.shape)


def _of_rows(magnitudes: Block, kept: int) -> NDArray[np.bool_]:
    """Of each row, so many."""
    import numpy as np

    last = magnitudes.shape[1] - kept
    least = np.partition(magnitudes, last, axis=1)[:, last, None]
    mask, equal = magnitudes > least, magnitudes == least
    missing = kept - mask.sum(1, keepdims=True)
    mask |= equal & (np.cumsum(equal, axis=1) <= missing)
    found: NDArray[np.bool_] = mask
    return found
