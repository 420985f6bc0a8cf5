"""AWQ's integers of four bits: GEMM (words of eight rows, in an order of their own) and GEMV.

Layouts: https://github.com/casper-hansen/AutoAWQ, `awq/modules/linear`. Zero points are stored as
they are. AutoAWQ multiplies in float16; here it is float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ctcli.formats.sources.coded import (
    Coded,
    MadeWhenRead,
    Source,
    SourceError,
    SourceFormat,
    part,
)
from ctcli.formats.sources.decoding import Decoding, as_matrix, decoded
from ctcli.formats.sources.gptq import check_dtypes, packing_of, settings
from ctcli.formats.sources.packed import (
    Groups,
    Packing,
    groups_of,
    made,
    shape_tensor,
    words_scheme,
)
from ctcli.formats.sources.words import Words
from ctcli.lazy.nodes import Computed, Input, LazyTensor, Shape, Where
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.modules import Module
from ctcli.schemes.arguments import Scheme

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks
    from ctcli.ops.decoding import Codes

_BITS = 4
_TO_A_WORD = 8
_VERSIONS = ("gemm", "gemv")


class Awq(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A `qweight` whose words hold eight rows, or eight columns."""
        tensors = [part(module, leaf) for leaf in ("qweight", "scales", "qzeros")]
        codes, scales, zeros = tensors
        if codes is None:
            return
        said = settings(source.said, module.name)
        version = _version(said)
        if scales is None or zeros is None or "g_idx" in module.parts:
            return
        shapes = [tensor.spec.shape for tensor in (codes, scales, zeros)]
        if any(len(shape) != 2 for shape in shapes) or shapes[0][1] == shapes[1][1]:
            return
        check_dtypes(module)
        _check(said)
        (down, across), (groups, rows), (_, words) = shapes
        if _TO_A_WORD * across == rows and shapes[2] == (groups, across):
            found, coded = "gemm", _gemm(module, (codes, scales, zeros), said, source.dtype)
        elif down == groups == shapes[2][0] and rows == _TO_A_WORD * words:
            found, coded = "gemv", _gemv(module, (codes, scales, zeros), said, source.dtype)
        else:
            listed = ", ".join(str(list(shape)) for shape in shapes)
            raise SourceError(f"its qweight, scales and qzeros {listed} do not fit each other")
        if version not in ("", found):
            raise SourceError(f"its tensors are AWQ's of version {found}, and not {version}")
        yield coded


def _version(said: Mapping[str, Any]) -> str:
    """The layout that config.json names, in lower case; empty: none.

    Raises:
        SourceError: it is not read.
    """
    if said.get("quant_method", "awq") != "awq":
        return ""
    version = str(said.get("version") or said.get("format") or "").lower()
    if version not in ("", *_VERSIONS):
        raise SourceError(f"AWQ's version {version} is not read")
    return version


def _check(said: Mapping[str, Any]) -> None:
    """Refuse what contradicts the tensors.

    Raises:
        SourceError: says what.
    """
    packed, method = packing_of(said), said.get("quant_method", "awq")
    if packed is not None and packed != "auto_awq":
        raise SourceError(f"its tensors are AWQ's, and packing_format is auto_round:{packed}")
    if packed is None and method != "awq":
        raise SourceError(f"its tensors are AWQ's, and quant_method is {method}")
    bits = said.get("bits", said.get("w_bit", _BITS))
    if bits != _BITS:
        raise SourceError(f"its tensors are AWQ's of 4 bits, and config.json says {bits}")
    if said.get("zero_point") is False:
        raise SourceError("AWQ without zero points (zero_point false) is not read")


def _gemm(
    module: Module[LazyTensor],
    tensors: tuple[Stored, Stored, Stored],
    said: Mapping[str, Any],
    dtype: str,
) -> Coded:
    codes, scales, zeros = tensors
    shape = scales.spec.shape[1], codes.spec.shape[0]
    groups = groups_of(scales.spec.shape[0], shape[1], _group_size(said))
    packing = Packing(_BITS, is_woven=True)
    weight = Words(module.name, shape, packing, groups, codes, scales, zeros)
    coded = _coded(module, "GEMM", groups, weight.floats(dtype))
    is_symmetric = said.get("sym") is True
    scheme = words_scheme(_BITS, groups, is_symmetric)
    stored = MadeWhenRead(partial(weight.stored, is_symmetric))
    return _convertible(coded, shape, groups, scheme, stored)


def _gemv(
    module: Module[LazyTensor],
    tensors: tuple[Stored, Stored, Stored],
    said: Mapping[str, Any],
    dtype: str,
) -> Coded:
    codes, scales, zeros = tensors
    shape = codes.spec.shape[0], _TO_A_WORD * codes.spec.shape[1]
    size = _group_size(said)
    are_rows = type(size) is not int or not 0 < size <= shape[1]
    size = shape[1] if are_rows else size
    groups = Groups(-(-shape[1] // size), size, are_rows)
    if zeros.spec.shape[1] != _zero_words(groups):
        raise SourceError(
            f"its qzeros {list(zeros.spec.shape)} are not those of {groups.count} groups of {size}"
        )
    width = math.lcm(_TO_A_WORD, size) if size < shape[1] else _TO_A_WORD
    inputs = {
        "codes": Input(codes, as_matrix(codes), each=(1, width // _TO_A_WORD)),
        "scale": Input(scales, as_matrix(scales), each=(1, 0)),
        "zeros": Input(zeros, as_matrix(zeros), each=(1, 0)),
    }
    kernel = DecodeGemv(dtype, groups, scales.spec.dtype)
    floats = decoded(module.name, inputs, kernel, shape, (1, width))
    coded = _coded(module, "GEMV", groups, floats)
    grid = (shape[0], groups.count)
    points = Input(zeros, as_matrix(zeros), each=(_TO_A_WORD, 0))
    stored: dict[str, LazyTensor] = {
        "weight_packed": codes,
        "weight_scale": made(
            module.name,
            {"weight_scale": TensorSpec(scales.spec.dtype, grid)},
            {"scale": inputs["scale"]},
            CutScales(groups.count),
            (grid, (1, 1)),
        ),
        "weight_zero_point": made(
            module.name,
            {"weight_zero_point": TensorSpec("I32", (-(-shape[0] // 8), groups.count))},
            {"zeros": points},
            CutZeros(groups.count),
            (grid, (_TO_A_WORD, 1)),
        ),
        "weight_shape": shape_tensor(shape),
    }
    return _convertible(coded, shape, groups, words_scheme(_BITS, groups, False), stored)


def _group_size(said: Mapping[str, Any]) -> Any:
    return said.get("group_size", said.get("q_group_size"))


def _zero_words(groups: Groups) -> int:
    """How many words of zero points a row of GEMV has: they are padded."""
    multiple = next((n for size, n in ((128, 1), (64, 2)) if groups.size >= size), 4)
    return -(-groups.count // (_TO_A_WORD * multiple)) * multiple


def _coded(module: Module[LazyTensor], version: str, groups: Groups, floats: Computed) -> Coded:
    parts = tuple(module.tensor(leaf) for leaf in ("qweight", "qzeros", "scales"))
    method = f"AWQ {version}, 4 bits, {groups.words}"
    return Coded(module.tensor("weight"), method, parts, floats, is_exact=False)


def _convertible(
    coded: Coded,
    shape: Shape,
    groups: Groups,
    scheme: Scheme,
    stored: Mapping[str, LazyTensor],
) -> Coded:
    if shape[1] % groups.size:
        return replace(coded, refusal="its last group has fewer columns than the others")
    return replace(coded, scheme=scheme, stored=stored)


@dataclass(frozen=True)
class DecodeGemv(Decoding):
    """Decode rows of words: `codes`, `scale` and `zeros`, of which the last two are padded.

    Attributes:
        groups: of the columns.
        scale: safetensors tag of the scales.
    """

    groups: Groups
    scale: str

    def codes(self, blocks: Blocks, where: Where) -> Codes:
        """See `Decoding`."""
        import numpy as np

        from ctcli.ops import decoding

        tiles, rows = self.groups.tiles(where.columns), len(where.rows)
        stream = np.ascontiguousarray(blocks["codes"]).view(np.uint8).reshape(rows, -1)
        scales = decoding.scales_of(np.ascontiguousarray(blocks["scale"][:, tiles]), self.scale)
        zeros = _points(blocks["zeros"], self.groups.count)[:, tiles].astype(np.float32)
        elements = decoding.integer_elements(_BITS, 0)
        width = min(self.groups.size, max(1, len(where.columns)))
        return decoding.Codes(stream, _BITS, elements, scales, zeros, (1, width))


@dataclass(frozen=True)
class CutScales:
    """The first so many scales of each row: a kernel."""

    count: int

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `lazy.nodes.Kernel`."""
        return {"weight_scale": blocks["scale"][:, : self.count]}, ()


@dataclass(frozen=True)
class CutZeros:
    """The first so many zero points of each row, packed along the rows: a kernel."""

    count: int

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `lazy.nodes.Kernel`."""
        import numpy as np

        from ctcli.ops.packing import pack_words

        points = np.ascontiguousarray(_points(blocks["zeros"], self.count).T)
        return {"weight_zero_point": np.ascontiguousarray(pack_words(points, _BITS).T)}, ()


def _points(words: Block, count: int) -> Block:
    """The zero points of some rows: uint8 [rows, groups]."""
    from ctcli.ops.packing import unpack_words

    return unpack_words(words, _BITS, count)


AWQ = Awq()
