"""NVFP4: E2M1 elements, an E4M3 scale for each 16, and a float32 scale for the whole fused set."""

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


class Nvfp4(NumericFormat):
    """See `NumericFormat`."""

    FORMATS = ("nvfp4-pack-quantized",)
    ARITHMETIC = "nvfp4"

    def claims(self, weights: QuantizationArgs) -> bool:
        """Four-bit floats."""
        return weights.type == "float" and weights.num_bits == 4

    def accepts(self, scheme: Scheme) -> bool:
        """Four-bit floats in groups of 16 under a global scale."""
        weights = scheme.weights
        kind = (weights.type, weights.num_bits, weights.strategy, weights.group_size)
        return kind == ("float", 4, "tensor_group", 16) and weights.symmetric

    def default_format(self, weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:  # noqa: ARG002
        """There is one."""
        return "nvfp4-pack-quantized"

    def outputs(self, numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:  # noqa: ARG002
        """`weight_packed`, `weight_scale` and `weight_global_scale`."""
        rows, columns = weight.shape
        return {
            "weight_packed": Output(TensorSpec("U8", (rows, columns // 2))),
            "weight_scale": Output(TensorSpec("F8_E4M3", (rows, columns // 16))),
            "weight_global_scale": Output(TensorSpec("F32", (1,)), is_whole=True),
        }

    def whole(self, scheme: Scheme, by_columns: bool) -> Whole | None:  # noqa: ARG002
        """The largest magnitude of the fused set."""
        return "largest"

    def _stored(
        self,
        found: QuantizedBlock,
        shape: tuple[int, ...],  # noqa: ARG002 (formats share one signature)
        numerics: Numerics,
        whole: Array | None,
    ) -> dict[str, Array]:
        import numpy as np

        from ctcli.ops.blocks import global_scale

        assert whole is not None
        total = np.array([global_scale(float(whole[0]), numerics.dtype)], np.float32)
        return {
            "weight_packed": found.codes,
            "weight_scale": found.marks.astype(np.uint8),
            "weight_global_scale": total.view(np.uint32),
        }

    def _elements(self, scheme: Scheme) -> tuple[int, Elements]:  # noqa: ARG002
        from ctcli.ops.decoding import e2m1_elements

        return 4, e2m1_elements()

    def _read(
        self,
        tensors: Mapping[str, Array],
        shape: tuple[int, int],  # noqa: ARG002 (formats share one signature)
        numerics: Numerics,  # noqa: ARG002
    ) -> tuple[Array, Array, Array | None]:
        import numpy as np

        from ctcli.ops.blocks import e4m3_values

        total = tensors["weight_global_scale"].view(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):  # what verify finds fault with
            scales = e4m3_values(tensors["weight_scale"]) / total
        return tensors["weight_packed"], scales, None


NVFP4 = Nvfp4()
