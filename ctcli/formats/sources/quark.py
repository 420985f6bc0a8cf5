"""AMD's Quark: MXFP6 and INT4. Its FP8 and MXFP4 are as others'.

MXFP6: `weight` U8 [N, 3 K / 4], four codes in three bytes, the first in the lowest bits,
`weight_scale` U8 [N, K / 32], powers of two; config.json tells E2M3 from E3M2. INT4: `weight` I32
[K, N / 8], eight rows to a word in AWQ's order, in two's complement; `weight_scale` [K / group, N];
`weight_zero_point`, which is zero. Packers: amd-quark 0.13, `quark/torch/utils/pack.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from ctcli.formats.sources.coded import Coded, MadeWhenRead, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import Decoding, Scaled, Table, decoded, scale_input, viewed
from ctcli.formats.sources.packed import made, shape_tensor
from ctcli.lazy.nodes import ContentError, Input, LazyTensor, Shape, Where
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.config import table
from ctcli.models.modules import Module
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.presets import preset

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks
    from ctcli.ops.decoding import Codes

_EXPONENTS = ("U8", "F8_E8M0")
_FLOATS = ("F32", "BF16", "F16")
_SIX: Mapping[object, Table] = {"fp6_e2m3": "e2m3", "fp6_e3m2": "e3m2"}
_TO_A_WORD = 8
_HINT = "Turn it into floats with the tool that wrote it."


class Quark(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A weight of six bits, or of integers in AWQ's words."""
        weight, scale = part(module, "weight"), part(module, "weight_scale")
        if weight is None or scale is None or len(weight.spec.shape) != 2:
            return
        if weight.spec.dtype == "U8" and scale.spec.dtype in _EXPONENTS:
            rows, across = weight.spec.shape
            if across % 24 == 0 and scale.spec.shape == (rows, across // 24):
                yield _float6(module, weight, scale, source)
        elif weight.spec.dtype == "I32":
            yield _int4(module, weight, scale, source)


def _float6(module: Module[LazyTensor], weight: Stored, scale: Stored, source: Source) -> Coded:
    element = _element(module.name, source.said)
    if element not in _SIX:
        raise SourceError("its codes have six bits, and config.json does not say of which kind")
    rows, across = weight.spec.shape
    shape, tile = (rows, across // 3 * 4), (1, 32)
    inputs = {
        "codes": Input(weight, (rows, across), each=(1, 24)),
        "scale": scale_input(scale, tile, shape),
    }
    kernel = Scaled("F32", 6, _SIX[element], scale.spec.dtype, tile)
    coded = Coded(
        module.tensor("weight"),
        f"MXFP6 {_SIX[element].upper()}",
        (module.tensor("weight"), module.tensor("weight_scale")),
        decoded(module.name, inputs, kernel, shape, tile, source.dtype),
        is_exact=True,
    )
    if _SIX[element] != "e2m3":
        return replace(coded, refusal="compressed-tensors' elements of six bits are E2M3")
    stored = {"weight_packed": weight, "weight_scale": viewed(scale, "U8", scale.spec.shape)}
    return replace(coded, scheme=preset("MXFP6A16"), stored=stored)


def _int4(module: Module[LazyTensor], weight: Stored, scale: Stored, source: Source) -> Coded:
    columns, words = weight.spec.shape
    rows, grid = words * _TO_A_WORD, scale.spec.shape
    element = _element(module.name, source.said)
    if element != "int4" or scale.spec.dtype not in _FLOATS:
        raise SourceError(f"its words hold {element}, of which only int4 is known")
    order = table(source.said.get("export")).get("pack_method")
    if order != "reorder":
        raise SourceError(f"its words are packed as {order!r}, of which only 'reorder' is known")
    if len(grid) != 2 or grid[1] != rows or not grid[0] or columns % grid[0]:
        raise SourceError(f"its scales {list(grid)} are not those of its words {[columns, words]}")
    group = columns // grid[0]
    if group % _TO_A_WORD:
        raise SourceError(f"its groups of {group} do not fill words")
    inputs = {
        "codes": Input(weight, (columns, words), "transposed", each=(group, 1)),
        "scale": Input(scale, (grid[0], rows), "transposed", each=(1, _TO_A_WORD)),
    }
    leaves = ["weight", "weight_scale"]
    zeros = part(module, "weight_zero_point")
    if zeros:
        if (zeros.spec.dtype, zeros.spec.shape) != ("I32", (grid[0], words)):
            raise SourceError(f"its zero points {list(zeros.spec.shape)} are not those of groups")
        inputs["zeros"] = Input(zeros, (grid[0], words), "transposed", each=(1, 1))
        leaves.append("weight_zero_point")
    kernel, granule = DecodeQuark("F32", group, scale.spec.dtype), (_TO_A_WORD, group)
    return Coded(
        module.tensor("weight"),
        f"INT4 in groups of {group}, Quark's words",
        tuple(module.tensor(leaf) for leaf in leaves),
        decoded(module.name, inputs, kernel, (rows, columns), granule, source.dtype),
        is_exact=False,
        scheme=Scheme("W4A16", QuantizationArgs(4, "int", "group", group), None, "pack-quantized"),
        stored=MadeWhenRead(partial(_packed, module.name, (rows, columns), inputs, scale.spec)),
    )


def _packed(
    module: str, shape: Shape, inputs: Mapping[str, Input], scale: TensorSpec
) -> Mapping[str, LazyTensor]:
    """The tensors of compressed-tensors' pack-quantized, by suffix."""
    (rows, columns), groups = shape, scale.shape[0]
    words = inputs["codes"]._replace(each=(_TO_A_WORD, 1))
    beside = {name: item for name, item in inputs.items() if name != "codes"}
    return {
        "weight_packed": made(
            module,
            {"weight_packed": TensorSpec("I32", (rows, columns // _TO_A_WORD))},
            {"codes": words},
            PackSigned(),
            (shape, (_TO_A_WORD, _TO_A_WORD)),
        ),
        "weight_scale": made(
            module,
            {"weight_scale": TensorSpec(scale.dtype, (rows, groups))},
            beside,
            WithoutZeros(),
            ((rows, groups), (_TO_A_WORD, 1)),
        ),
        "weight_shape": shape_tensor(shape),
    }


def _element(module: str, said: Mapping[str, Any]) -> object:
    """What Quark's config says that a module's weight is made of: `fp4`, `int4`, ...

    Raises:
        SourceError: it says two things.
    """
    layers = table(said.get("layer_quant_config"))
    found = {
        table(table(given).get("weight")).get("dtype")
        for pattern, given in layers.items()
        if fnmatchcase(module, pattern)
    }
    if len(found) > 1:
        raise SourceError("several patterns of layer_quant_config match it, and differ")
    overall = table(table(said.get("global_quant_config")).get("weight")).get("dtype")
    return found.pop() if found else overall


@dataclass(frozen=True)
class DecodeQuark(Decoding):
    """Decode words of eight rows, in two's complement, and transposed.

    Attributes:
        group: columns that share a scale.
        scale: safetensors tag of the scales.
    """

    group: int
    scale: str

    def codes(self, blocks: Blocks, where: Where) -> Codes:  # noqa: ARG002 (kernels share it)
        """See `Decoding`.

        Raises:
            ContentError: there are zero points.
        """
        import numpy as np

        from ctcli.ops import decoding
        from ctcli.ops.awq import packed_by_rows

        _check_zeros(blocks)
        stream = packed_by_rows(np.ascontiguousarray(blocks["codes"]).view(np.uint32))
        stream = stream.view(np.uint8)
        scales = decoding.scales_of(blocks["scale"], self.scale)
        return decoding.Codes(stream, 4, decoding.signed_elements(4), scales, None, (1, self.group))


@dataclass(frozen=True)
class PackSigned:
    """Words of eight rows in two's complement as offset ones, by rows: a kernel."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `lazy.nodes.Kernel`."""
        import numpy as np

        from ctcli.ops.awq import packed_by_rows

        return {"weight_packed": packed_by_rows(blocks["codes"]) ^ np.uint32(0x88888888)}, ()


@dataclass(frozen=True)
class WithoutZeros:
    """Scales, beside which zero points have to be zero: a kernel."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `lazy.nodes.Kernel`.

        Raises:
            ContentError: they are not.
        """
        _check_zeros(blocks)
        return {"weight_scale": blocks["scale"]}, ()


def _check_zeros(blocks: Blocks) -> None:
    if "zeros" in blocks and blocks["zeros"].any():
        raise ContentError("its zero points are not zero, and Quark's are not known", _HINT)


QUARK = Quark()
