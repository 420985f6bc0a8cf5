"""Integers in 32-bit words and the groups of their columns, whoever packed them.

compressed-tensors' pack-quantized holds the same codes, scales and zero points.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ctcli.formats.sources.coded import SourceError
from ctcli.lazy.nodes import Computed, Input, Kernel, Node, Output, Shape
from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.schemes.arguments import QuantizationArgs, Scheme

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block

SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Groups:
    """How the columns of a weight share scales and zero points.

    Attributes:
        count: how many groups a row has.
        size: columns of a group; the last one may have fewer.
        are_rows: whether whole rows are meant, however many columns they have.
    """

    count: int
    size: int
    are_rows: bool = False

    @property
    def words(self) -> str:
        """What they are, for people."""
        return "a scale for each row" if self.are_rows else f"groups of {self.size}"

    def tiles(self, columns: range) -> slice:
        """The groups of some columns, which begin with a group."""
        return slice(columns.start // self.size, -(-columns.stop // self.size))


@dataclass(frozen=True)
class Packing:
    """How integers lie in words.

    Attributes:
        bits: of an integer.
        offset: what is added to a stored zero point, within its bits.
        carries: whether it was subtracted from whole words of 2, 4 or 8 bits, so that a zero point
            of 0 borrowed from the next one.
        is_woven: AWQ's: words hold the codes of eight rows, in an order of their own; else codes
            are packed along the columns, and zero points along the rows, both in order.
    """

    bits: int
    offset: int = 0
    carries: bool = False
    is_woven: bool = False

    @property
    def whole(self) -> int:
        """Integers that fill whole words."""
        return 32 // math.gcd(32, self.bits)

    def words(self, integers: int) -> int:
        """Words that so many integers fill."""
        return -(-integers * self.bits // 32)

    @property
    def adds_to_words(self) -> bool:
        """Whether the offset is added to words as numbers."""
        return bool(self.offset) and self.carries and 32 % self.bits == 0

    def _raised(self, words: Block) -> Block:
        """Words with the offset added in each of their integers, as numbers."""
        import numpy as np

        ones = sum(self.offset << at for at in range(0, 32, self.bits))
        return np.add(words, np.uint32(ones))

    def zero_points(self, words: Block, rows: int) -> Block:
        """The zero points in words [row words, groups]: uint8 [rows, groups]."""
        import numpy as np

        from ctcli.ops.awq import packed_by_rows
        from ctcli.ops.packing import unpack_words

        if self.is_woven:
            return unpack_words(packed_by_rows(words), self.bits, words.shape[1])
        flat = np.ascontiguousarray(words.T)
        if self.adds_to_words:
            return unpack_words(self._raised(flat), self.bits, rows).T
        found = unpack_words(flat, self.bits, rows).T
        return (found + np.uint8(self.offset)) & np.uint8((1 << self.bits) - 1)

    def packed(self, words: Block, rows: int) -> Block:
        """The same words with zero points as they are, in order."""
        import numpy as np

        from ctcli.ops.awq import in_order
        from ctcli.ops.packing import pack_words

        if self.adds_to_words:
            return self._raised(words)
        if not self.offset:
            return in_order(words) if self.is_woven else words
        points = np.ascontiguousarray(self.zero_points(words, rows).T)
        return np.ascontiguousarray(pack_words(points, self.bits).T)


def groups_of(count: int, columns: int, said: Any) -> Groups:
    """The groups of a weight's columns.

    Args:
        count: how many it has scales for.
        columns: of the weight.
        said: `group_size` in config.json: -1 stands for all columns, None for nothing.

    Raises:
        SourceError: its scales are not for such groups.
    """
    are_rows = type(said) is not int or not 0 < said <= columns
    size = columns if are_rows else said
    if said is None and count > 1 and columns % count == 0:
        are_rows, size = False, columns // count
    if count != -(-columns // size):
        raise SourceError(
            f"it has scales for {count} groups, and not for {columns} columns in groups of {size}"
        )
    return Groups(count, size, are_rows)


def words_scheme(bits: int, groups: Groups, is_symmetric: bool) -> Scheme:
    """compressed-tensors' scheme for such a weight."""
    name = f"W{bits}A16" + ("" if is_symmetric else "_ASYM")
    weights = QuantizationArgs(bits, "int", "channel", symmetric=is_symmetric)
    if not groups.are_rows:
        weights = replace(weights, strategy="group", group_size=groups.size)
    return Scheme(name, weights, None, "pack-quantized")


def shape_tensor(shape: Shape) -> Known:
    """`weight_shape`."""
    return Known(TensorSpec("I64", (2,)), struct.pack("<2q", *shape))


def made(
    module: str,
    spec: Mapping[str, TensorSpec],
    inputs: Mapping[str, Input],
    kernel: Kernel,
    over: tuple[Shape, Shape],
) -> Computed:
    """A tensor of another layout.

    Args:
        module: its module.
        spec: its suffix, and what it looks like.
        inputs: what it is made of.
        kernel: makes it.
        over: the matrix that it runs over, and how many rows and columns of it belong together.
    """
    ((suffix, found),) = spec.items()
    shape, granule = over
    key = f"{module}/{suffix}/convert"
    node = Node(key, module, shape, inputs, {suffix: Output(found)}, kernel, granule)
    return Computed(node, suffix)
