"""Linears of NVIDIA's ModelOpt: NVFP4, INT4 AWQ and INT8. Its FP8, MXFP8 and MXFP4 are as others'.

NVFP4: `weight` U8 [N, K / 2] of E2M1, the low nibble first, `weight_scale` E4M3 [N, K / group] and
`weight_scale_2` F32: W = q * (s * s2). INT4: `weight` U8 [N / 2, K], two rows to a byte, in two's
complement; `weight_scale` [N, K / group]. INT8: `weight` I8, `weight_scale` [N]. Where there is a
`pre_quant_scale` [K], which multiplies the inputs, the columns of the weight that the model needs
are multiplied by it. Layouts: https://github.com/NVIDIA/Model-Optimizer,
`modelopt/torch/export/quant_utils.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import (
    Scaled,
    decoded,
    factor_input,
    granule_of,
    scale_input,
    viewed,
)
from ctcli.formats.sources.nvfp4 import group_of, nvfp4_inputs
from ctcli.formats.sources.scales import Reciprocal, scaled
from ctcli.lazy.nodes import Computed, Input, LazyTensor, Node, Output, Shape, Where
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.models.modules import Module
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.presets import preset

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks

_FLOATS = ("F32", "BF16", "F16")
_BESIDE = ("input_scale", "pre_quant_scale", "input_amax", "weight_amax")
_SMOOTHED = "compressed-tensors has no scales of inputs' columns (pre_quant_scale)"


class ModelOpt(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A weight with `weight_scale` beside it, of a dtype that is ModelOpt's own."""
        weight, scale = part(module, "weight"), part(module, "weight_scale")
        if weight is None or scale is None or len(weight.spec.shape) != 2:
            return
        codes, tag = weight.spec.dtype, scale.spec.dtype
        if codes not in ("U8", "I8"):
            return
        if "input_activation_scale" in module.parts:
            raise SourceError(
                "its activations are rounded while the model runs (quant_method gemma): without "
                "that it is another model"
            )
        if "svdquant_lora_a" in module.parts:
            raise SourceError("it has SVDQuant's matrices beside it, which are not read")
        if codes == "U8" and tag == "F8_E4M3":
            yield _nvfp4(module, weight, scale, source)
        elif codes == "U8" and tag in _FLOATS:
            yield _int4(module, weight, scale, source)
        elif codes == "I8" and tag in _FLOATS:
            yield _int8(module, weight, scale, source)


def _nvfp4(module: Module[LazyTensor], weight: Stored, scale: Stored, source: Source) -> Coded:
    total = part(module, "weight_scale_2")
    if total is None or total.spec.dtype != "F32" or math.prod(total.spec.shape) != 1:
        raise SourceError("it has no weight_scale_2 of one float32 number")
    inputs, kernel, shape = nvfp4_inputs(weight, scale, total)
    group = kernel.tile[1]
    method = "NVFP4" if group == 16 else f"NVFP4 in groups of {group}"
    coded = _coded(module, source, method, inputs, kernel, shape, ("weight", "weight_scale_2"))
    if coded.refusal:
        return coded
    if group != 16 or "W4A8" in str(source.said.get("quant_algo")):
        return replace(coded, refusal="compressed-tensors has no such weights with FP8 inputs")
    stored: dict[str, LazyTensor] = {
        "weight_packed": weight,
        "weight_scale": scale,
        "weight_global_scale": scaled(module.name, "weight_global_scale", total, Reciprocal()),
    }
    given = part(module, "input_scale")
    if given:
        name = "input_global_scale"
        stored[name] = scaled(module.name, name, given, Reciprocal())
    scheme = preset("NVFP4" if given else "NVFP4A16")
    return replace(coded, scheme=scheme, stored=stored, has_reciprocal=True)


def _int4(module: Module[LazyTensor], weight: Stored, scale: Stored, source: Source) -> Coded:
    if "weight_scale_2" in module.parts:
        raise SourceError(
            "it is W4A8_AWQ, whose integers are rounded to FP8 while the model runs "
            "(weight_scale_2): without that it is another model"
        )
    rows, columns = shape = 2 * weight.spec.shape[0], weight.spec.shape[1]
    group = group_of(scale, shape)
    granule = (2, group)
    inputs = {
        "codes": Input(weight, (rows // 2, columns), each=(1, group)),
        "scale": Input(scale, (rows, columns // group), each=(2, 1)),
    }
    kernel = Scaled("F32", 4, "signed", scale.spec.dtype, (1, group), pairs_rows=True)
    method = f"INT4 in groups of {group}, two rows to a byte"
    coded = _coded(module, source, method, inputs, kernel, shape, ("weight",), granule)
    if coded.refusal:
        return coded
    return _packed(coded, weight, scale, QuantizationArgs(4, "int", "group", group))


def _int8(module: Module[LazyTensor], weight: Stored, scale: Stored, source: Source) -> Coded:
    rows, columns = shape = weight.spec.shape[0], weight.spec.shape[1]
    if math.prod(scale.spec.shape) != rows:
        raise SourceError(f"its scales {list(scale.spec.shape)} are not one for each row")
    tile = (1, columns)
    inputs = {"codes": Input(weight, shape), "scale": scale_input(scale, tile, shape)}
    kernel = Scaled("F32", 8, "signed", scale.spec.dtype, tile)
    coded = _coded(module, source, "INT8, a scale for each row", inputs, kernel, shape, ("weight",))
    if coded.refusal:
        return coded
    if part(module, "input_scale"):
        return replace(coded, refusal="its static inputs are not converted")
    return _packed(coded, weight, scale, QuantizationArgs(8, "int", "channel"))


def _coded(
    module: Module[LazyTensor],
    source: Source,
    method: str,
    inputs: dict[str, Input],
    kernel: Scaled,
    shape: Shape,
    leaves: Sequence[str],
    granule: Shape | None = None,
) -> Coded:
    """A weight, with what is beside it: factors of its columns among them."""
    granule = granule or granule_of(kernel.tile, shape, 8 // kernel.bits)
    factors = part(module, "pre_quant_scale")
    if factors:
        if factors.spec.dtype not in _FLOATS or math.prod(factors.spec.shape) != shape[1]:
            raise SourceError("its pre_quant_scale is not one number for each column")
        inputs["factor"] = factor_input(factors, granule)
        kernel = replace(kernel, factor=factors.spec.dtype)
    beside = (leaf for leaf in _BESIDE if leaf in module.parts)
    return Coded(
        module.tensor("weight"),
        f"{method}, inputs scaled" if factors else method,
        tuple(module.tensor(leaf) for leaf in (*leaves, "weight_scale", *beside)),
        decoded(module.name, inputs, kernel, shape, granule, source.dtype),
        is_exact=False,
        refusal=_SMOOTHED if factors else "",
    )


def _packed(coded: Coded, weight: Stored, scale: Stored, arguments: QuantizationArgs) -> Coded:
    """With the pack-quantized tensors that hold the same integers."""
    rows, columns = coded.weight.spec.shape
    bits = arguments.num_bits
    if columns * bits % 32:
        return replace(coded, refusal="its columns do not fill words of 32 bits")
    pair = 2 if bits == 4 else 1
    node = Node(
        key=f"{coded.module}/weight_packed/convert",
        module=coded.module,
        shape=(rows, columns),
        inputs={"codes": Input(weight, (rows // pair, columns), each=(1, 32))},
        outputs={"packed": Output(TensorSpec("I32", (rows, columns * bits // 32)))},
        kernel=PackOffset("rows" if pair == 2 else "bytes"),
        granule=(pair, 32),
    )
    scales = viewed(scale, scale.spec.dtype, (rows, math.prod(scale.spec.shape) // rows))
    return replace(
        coded,
        scheme=Scheme(f"W{bits}A16", arguments, None, "pack-quantized"),
        stored={
            "weight_packed": Computed(node, "packed"),
            "weight_scale": scales,
            "weight_shape": Known(TensorSpec("I64", (2,)), struct.pack("<2q", rows, columns)),
        },
    )


@dataclass(frozen=True)
class PackOffset:
    """Signed integers as words of integers plus half their range: a kernel.

    Attributes:
        layout: `bytes`, one to each; `rows`, two of four bits, the first row's in the low nibble.
    """

    layout: Literal["bytes", "rows"]

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`."""
        import numpy as np

        from ctcli.ops.decoding import row_pairs

        codes = np.ascontiguousarray(blocks["codes"]).view(np.uint8)
        if self.layout == "bytes":
            found = codes ^ np.uint8(0x80)
        else:
            signed = row_pairs(codes) ^ np.uint8(8)
            found = signed[:, 0::2] | signed[:, 1::2] << np.uint8(4)
        return {"packed": np.ascontiguousarray(found).view(np.uint32)}, ()


MODELOPT = ModelOpt()
