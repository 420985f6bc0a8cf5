"""MXFP4, MXFP6 and MXFP8: E2M1, E2M3 or E4M3 elements with a power of two for each 32.

The powers are stored as biased exponents (E8M0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctcli.lazy.nodes import Output
from ctcli.lazy.tensors import TensorSpec
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.family import Numerics
from ctcli.schemes.format import NumericFormat, Whole

if TYPE_CHECKING:
    from ctcli.ops.decoding import Elements
    from ctcli.ops.quantized import Array, QuantizedBlock


class Microscaling(NumericFormat):
    """See `NumericFormat`."""

    FORMATS = ("mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized")
    ARITHMETIC = "mx"

    def claims(self, weights: QuantizationArgs) -> bool:
        """Four-bit floats in groups of 32; of others, those with exponents for scales."""
        if weights.type == "float" and weights.num_bits == 4:
            return weights.group_size == 32
        return weights.scale_dtype == "torch.uint8"

    def accepts(self, scheme: Scheme) -> bool:
        """Floats in groups of 32 with exponents for scales."""
        weights = scheme.weights
        kind = (weights.type, weights.strategy, weights.group_size, weights.scale_dtype)
        return kind == ("float", "group", 32, "torch.uint8") and weights.symmetric

    def default_format(self, weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:  # noqa: ARG002
        """By the bits of an element."""
        return f"mxfp{weights.num_bits}-{'' if weights.num_bits == 8 else 'pack-'}quantized"

    def outputs(self, numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
        """`weight_packed` or `weight`, and `weight_scale`."""
        rows, columns = weight.shape
        scale = Output(TensorSpec("U8", (rows, columns // 32)))
        if numerics.scheme.weights.num_bits == 8:
            return {"weight": Output(TensorSpec("F8_E4M3", weight.shape)), "weight_scale": scale}
        packed = TensorSpec("U8", (rows, columns * numerics.scheme.weights.num_bits // 8))
        return {"weight_packed": Output(packed), "weight_scale": scale}

    def whole(self, scheme: Scheme, by_columns: bool) -> Whole | None:  # noqa: ARG002
        """Nothing."""
        return None

    def _stored(
        self,
        found: QuantizedBlock,
        shape: tuple[int, ...],  # noqa: ARG002 (formats share one signature)
        numerics: Numerics,
        whole: Array | None,  # noqa: ARG002
    ) -> dict[str, Array]:
        codes = "weight" if numerics.scheme.weights.num_bits == 8 else "weight_packed"
        return {codes: found.codes, "weight_scale": found.marks.astype("u1")}

    def _elements(self, scheme: Scheme) -> tuple[int, Elements]:
        from ctcli.ops import decoding

        bits = scheme.weights.num_bits
        if bits == 6:
            return bits, decoding.float6_elements(2)
        return bits, decoding.e2m1_elements() if bits == 4 else decoding.e4m3_elements()

    def _read(
        self,
        tensors: Mapping[str, Array],
        shape: tuple[int, int],  # noqa: ARG002 (formats share one signature)
        numerics: Numerics,
    ) -> tuple[Array, Array, Array | None]:
        import numpy as np

        codes = "weight" if numerics.scheme.weights.num_bits == 8 else "weight_packed"
        with np.errstate(over="ignore"):  # 255, which stands for NaN, reads as infinite
            powers = np.ldexp(np.float32(1), tensors["weight_scale"].astype(np.int32) - 127)
        return tensors[codes], powers, None


MICROSCALING = Microscaling()
