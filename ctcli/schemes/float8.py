"""FP8: E4M3 elements with scales of the weight's dtype; float-quantized and naive-quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ctcli.lazy.nodes import Output
from ctcli.lazy.tensors import TensorSpec
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.family import Numerics
from ctcli.schemes.format import NumericFormat
from ctcli.schemes.tiles import read_scales, scale_output, stored_scales

if TYPE_CHECKING:
    from ctcli.ops.decoding import Elements
    from ctcli.ops.quantized import Array, QuantizedBlock

_STRATEGIES = ("tensor", "channel", "group", "block")


class Float8(NumericFormat):
    """See `NumericFormat`."""

    FORMATS = ("float-quantized", "naive-quantized")
    ARITHMETIC = "float8"

    def claims(self, weights: QuantizationArgs) -> bool:
        """Floats."""
        return weights.type == "float"

    def accepts(self, scheme: Scheme) -> bool:
        """Eight-bit floats with floating-point scales."""
        weights = scheme.weights
        is_float8 = weights.type == "float" and weights.num_bits == 8 and weights.symmetric
        return is_float8 and weights.scale_dtype is None and weights.strategy in _STRATEGIES

    def default_format(self, weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:  # noqa: ARG002
        """Float-quantized, if inputs are quantized too."""
        return "float-quantized" if inputs else "naive-quantized"

    def outputs(self, numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
        """`weight` and `weight_scale`."""
        return {
            "weight": Output(TensorSpec("F8_E4M3", weight.shape)),
            "weight_scale": scale_output(numerics.scheme.weights, weight, numerics.dtype),
        }

    def _stored(
        self,
        found: QuantizedBlock,
        shape: tuple[int, ...],  # noqa: ARG002 (formats share one signature)
        numerics: Numerics,
        whole: Array | None,  # noqa: ARG002
    ) -> dict[str, Array]:
        scales = stored_scales(found.scales, numerics.scheme.weights, numerics.dtype)
        return {"weight": found.codes, "weight_scale": scales}

    def _elements(self, scheme: Scheme) -> tuple[int, Elements]:  # noqa: ARG002
        from ctcli.ops.decoding import e4m3_elements

        return 8, e4m3_elements()

    def _read(
        self,
        tensors: Mapping[str, Array],
        shape: tuple[int, int],  # noqa: ARG002 (formats share one signature)
        numerics: Numerics,
    ) -> tuple[Array, Array, Array | None]:
        return tensors["weight"], read_scales(tensors["weight_scale"], numerics.dtype), None


FLOAT8 = Float8()
