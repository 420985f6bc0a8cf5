"""Kernels for transposed words: to floats, and to the layout of compressed-tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.formats.sources.decoding import Decoding
from ctcli.formats.sources.packed import Groups, Packing
from ctcli.lazy.nodes import ContentError, Where

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks
    from ctcli.ops.decoding import Codes

_DENSE = "compressed-tensors has no such order: turn it into floats with ctcli dequantize."


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
        elements = decoding.integer_elements(bits, 0)
        order = ordered(blocks, self.groups)
        if order is not None:
            order = order[columns.start : columns.stop]
            if (order != np.arange(columns.start, columns.stop) // self.groups.size).any():
                each = np.ascontiguousarray(zeros[:, order])
                return decoding.Codes(stream, bits, elements, scales[:, order], each, (1, 1))
        tiles = self.groups.tiles(columns)
        width = min(self.groups.size, max(1, len(columns)))
        return decoding.Codes(stream, bits, elements, scales[:, tiles], zeros[:, tiles], (1, width))


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
