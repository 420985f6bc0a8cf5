"""What is asked of the arithmetic of quantizing, and what it answers, whoever does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[Any]

FormatName = str  # a file beside this one


@dataclass(frozen=True)
class Search:
    """What part of its range a tile is to cover.

    Attributes:
        parts: those that are tried; negative ones give negative scales. The first wins ties.
        power: of the errors whose sum is to be least: 2 or 4.
    """

    parts: tuple[float, ...]
    power: Literal[2, 4] = 2


# Of the whole range down to two fifths of it, that with the least squared error.
LEAST_SQUARES = Search(tuple(1 - step / 50 for step in range(31)))


@dataclass(frozen=True)
class Rounding:
    """How a block of a weight is quantized.

    Attributes:
        format: whose arithmetic.
        dtype: D, to which scales are rounded: BF16, F16, F32 or F64.
        rounds_quotients: weight / scale is rounded to D, too.
        tile: rows and columns that share a scale; None stands for all there are.
        bits: of an element.
        packed: integers side by side, as offset binary.
        symmetric: there are no zero points.
        signed: the element of largest magnitude gets the lowest code, whatever its sign: scales
            have the other one.
        search: tiles cover the best part of their range; None: all of it.
        total: the largest magnitude of all weights under a global scale, for nvfp4.
    """

    format: FormatName
    dtype: str
    rounds_quotients: bool
    tile: tuple[int | None, int | None]
    bits: int
    packed: bool = False
    symmetric: bool = True
    signed: bool = False
    search: Search | None = None
    total: float = 0.0

    @property
    def spans_zero(self) -> bool:
        """Whether the ranges of tiles are those of magnitudes, [-amax, amax]."""
        return self.symmetric and not self.signed


@dataclass(frozen=True, eq=False)
class QuantizedBlock:
    """What a block becomes.

    Attributes:
        codes: uint8 [rows, bytes]: one to a byte, FP4 two, packed integers in whole words.
        scales: float32 [row tiles, column tiles]; for nvfp4 and mx as they are multiplied with.
        marks: likewise: zero points; codes of E4M3 scales (nvfp4); biased exponents (mx).
        sums: float64 [weights, 2]: the sum of squares of the error of what a reader computes in
            float32, and that of the weight, which is NaN or infinite only where the weight is.
    """

    codes: Array
    scales: Array
    marks: Array
    sums: Array


class Body(Protocol):
    """The arithmetic, on one device.

    Blocks are [rows, columns] arrays of uint16 (the bits of BF16 or F16, which a tag says), float32
    or float64, which is rounded to float32 first. They hold whole tiles, but for the last ones.
    """

    def quantize(
        self, block: Array, tag: str, rounding: Rounding, ranges: Array | None, count: int = 1
    ) -> QuantizedBlock:
        """Quantize a block.

        Args:
            block: the block.
            tag: its dtype.
            rounding: how.
            ranges: [low, high] of the whole weight, or of each row, as float32 [2, 1 or rows];
                None: tiles have ranges of their own.
            count: of how many weights of one shape it consists, one below the other; tiles are of
                one of them each.
        """

    def errors(self, block: Array, tag: str, rounding: Rounding, ranges: Array) -> Array:
        """The error of the block, or of each row, for each part that the search tries.

        Args:
            block: the block.
            tag: its dtype.
            rounding: how to quantize it, with a search.
            ranges: as `quantize` takes them.

        Returns:
            float64 [parts, 1 or rows]: sums of squares, or of fourth powers over that of the
            range's end.
        """

    def widest(self, block: Array, tag: str, rounding: Rounding) -> Array:
        """[-low, high] of the block, or of each row (as the tile says): float32 [2, 1 or rows]."""

    def largest(self, block: Array, tag: str) -> Array:
        """The largest magnitude: float32 [1], NaN if a value is."""
