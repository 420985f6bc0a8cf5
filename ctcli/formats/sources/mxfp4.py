"""MXFP4 of model makers: DeepSeek-V4's experts, NVIDIA's and AMD's checkpoints.

A weight E2M1 [N, K], two codes to a byte, the low nibble first, with a power of two for each 32:
I8 with `scale` (DeepSeek-V4; its `-Base` releases store the powers as float32), or U8 with
`weight_scale` in U8 (ModelOpt, Quark). Layouts: transformers' `integrations/finegrained_fp8.py`,
`_unpack_fp4`; vLLM's `quantization/quark/schemes/quark_ocp_mx.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import Scaled, decoded, scale_input, viewed
from ctcli.formats.sources.scales import Exponents, scaled
from ctcli.lazy.nodes import Input, LazyTensor
from ctcli.lazy.tensors import Stored
from ctcli.models.config import table
from ctcli.models.modules import Module
from ctcli.schemes.presets import preset

_EXPONENTS = ("U8", "F8_E8M0")
_INPUT_SCALES = ("input_scale",)


class Mxfp4(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """A weight of packed codes whose scales are powers of two."""
        weight = part(module, "weight")
        if weight is None or len(weight.spec.shape) != 2:
            return
        leaf = "scale" if weight.spec.dtype == "I8" else "weight_scale"
        scale = part(module, leaf)
        if scale is None or weight.spec.dtype not in ("I8", "U8"):
            return
        if weight.spec.dtype == "I8" or scale.spec.dtype in _EXPONENTS:
            yield _float4(module, weight, leaf, scale, source)


def _float4(
    module: Module[LazyTensor], weight: Stored, leaf: str, scale: Stored, source: Source
) -> Coded:
    rows, columns = shape = weight.spec.shape[0], 2 * weight.spec.shape[1]
    tag, grid = scale.spec.dtype, scale.spec.shape
    if tag not in (*_EXPONENTS, "F32"):
        raise SourceError(f"its {leaf} is {tag}, which is no power of two")
    if grid != (rows, columns // 32) or columns % 32:
        raise SourceError(f"its scales {list(grid)} are not those of FP4 codes {list(shape)}")
    codes = viewed(weight, "U8", (rows, columns // 2))
    inputs = {
        "codes": Input(codes, (rows, columns // 2), each=(1, 16)),
        "scale": scale_input(scale, (1, 32), shape),
    }
    kernel = Scaled("F32", 4, "e2m1", tag, (1, 32))
    floats = decoded(module.name, inputs, kernel, shape, (1, 32), source.dtype)
    exponents: LazyTensor = viewed(scale, "U8", grid)
    if tag == "F32":
        exponents = scaled(module.name, "weight_scale", scale, Exponents())
    leaves = ("weight", leaf, *(each for each in _INPUT_SCALES if part(module, each)))
    return Coded(
        module.tensor("weight"),
        "MXFP4",
        tuple(module.tensor(each) for each in leaves),
        floats,
        is_exact=tag in _EXPONENTS,
        scheme=preset("MXFP4" if _has_float4_inputs(source.said) else "MXFP4A16"),
        stored={"weight_packed": codes, "weight_scale": exponents},
    )


def _has_float4_inputs(said: Mapping[str, Any]) -> bool:
    """Whether config.json wants the inputs of such weights quantized likewise."""
    if said.get("quant_method") == "quark":
        inputs = table(table(said.get("global_quant_config")).get("input_tensors"))
        return inputs.get("dtype") in ("fp4", "mxfp4")
    return str(said.get("quant_algo")).lower() == "mxfp4"


MXFP4 = Mxfp4()
