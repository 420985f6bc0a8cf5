"""Integers in 32-bit words, transposed against the weight: what GPTQ and AWQ have in common.

compressed-tensors' pack-quantized holds the same codes, scales and zero points.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ctcli.formats.sources.coded import SourceError
from ctcli.formats.sources.decoding import Decoding, as_matrix, decoded
from ctcli.lazy.nodes import (
    Computed,
    ContentError,
    Input,
    Kernel,
    LazyTensor,
    Node,
    Output,
    Shape,
    Where,
)
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.schemes.arguments import QuantizationArgs, Scheme

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks
    from ctcli.ops.decoding import Codes

SCALES = ("F16", "BF16", "F32")
_DENSE = "compressed-tensors has no such order: turn it into floats with ctcli dequantize."


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
        return made(self.module, spec, {"codes": words}, Unchanged(), ((rows, shape[1]), (1, 1)))

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


@dataclass(frozen=True)
class DecodeWords(Decoding):
    """Decode transposed words.

    Inputs: `codes`, `scale`, `zeros`, perhaps `order`, all of them transposed.

    Attributes:
        packing: how integers lie in words.
        groups: of the columns.
        scale: safetensors tag of the scales.
    """

    packing: Packing
    groups: Groups
    scale: str

    def codes(self, blocks: Blocks, where: Where) -> Codes:
        """See `Decoding`.

        Raises:
            ContentError: the order of the columns names groups that are not there.
        """
        import numpy as np

        from ctcli.ops import decoding
        from ctcli.ops.awq import packed_by_rows

        rows, columns = len(where.rows), where.columns
        words = blocks["codes"]
        words = packed_by_rows(words) if self.packing.is_woven else np.ascontiguousarray(words)
        stream = words.view(np.uint8).reshape(rows, -1)
        scales = decoding.scales_of(blocks["scale"], self.scale)
        zeros = self.packing.zero_points(blocks["zeros"], rows).astype(np.float32)
        bits = self.packing.bits
        table = decoding.integer_table(bits, 0)
        order = ordered(blocks, self.groups)
        if order is not None:
            order = order[columns.start : columns.stop]
            if (order != np.arange(columns.start, columns.stop) // self.groups.size).any():
                each = np.ascontiguousarray(zeros[:, order])
                return decoding.Codes(stream, bits, table, scales[:, order], each, (1, 1))
        tiles = self.groups.tiles(columns)
        width = min(self.groups.size, max(1, len(columns)))
        return decoding.Codes(stream, bits, table, scales[:, tiles], zeros[:, tiles], (1, width))


@dataclass(frozen=True)
class Unchanged:
    """What it reads: a kernel, see `lazy.nodes.Kernel`. Only the way in which it runs is another.

    Attributes:
        output: name of what comes out.
    """

    output: str = "weight_packed"

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`."""
        return {self.output: blocks["codes"]}, ()


@dataclass(frozen=True)
class PackWoven:
    """Codes of AWQ, packed along the columns: a kernel."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`."""
        from ctcli.ops.awq import packed_by_rows

        return {"weight_packed": packed_by_rows(blocks["codes"])}, ()


@dataclass(frozen=True)
class PackZeros:
    """Zero points as pack-quantized stores them: a kernel."""

    packing: Packing

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        found = self.packing.packed(blocks["zeros"], len(where.rows))
        return {"weight_zero_point": found}, ()


@dataclass(frozen=True)
class CheckedScales:
    """Scales, if nothing beside them says more: a kernel.

    Inputs: `scale`; perhaps `zeros`, which must all be in the middle; perhaps `order`, which must
    be none.
    """

    packing: Packing
    groups: Groups

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            ContentError: they do.
        """
        import numpy as np

        order, middle = ordered(blocks, self.groups), 1 << (self.packing.bits - 1)
        if order is not None and (order != np.arange(len(order)) // self.groups.size).any():
            raise ContentError(
                "g_idx does not count the columns, and config.json has no desc_act", _DENSE
            )
        if "zeros" in blocks:
            points = self.packing.zero_points(blocks["zeros"], len(where.rows))
            if (points != middle).any():
                raise ContentError(
                    f"some zero points are not {middle}, and config.json says that they are (sym)",
                    'Give "sym": false in its config.json.',
                )
        return {"weight_scale": blocks["scale"]}, ()


def ordered(blocks: Blocks, groups: Groups) -> Block | None:
    """The group of each column, int32; None where they are in order.

    Raises:
        ContentError: there is no such group.
    """
    import numpy as np

    if "order" not in blocks:
        return None
    order = blocks["order"].view(np.int32).reshape(-1)
    order = np.where(order < 0, order + groups.count, order)  # of the first writers
    if ((order < 0) | (order >= groups.count)).any():
        raise ContentError("g_idx names groups that it has no scales for", "Repair the checkpoint.")
    return order


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
