"""What every numeric family offers, and the settings it works under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ctcli.lazy.tensors import Output, TensorSpec, torch_dtype
from ctcli.schemes.arguments import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ctcli.ops.bits import Bits
    from ctcli.ops.ranges import Roundtrip

Observer = Literal["minmax", "mse"]
ComputeDtype = Literal["float32", "weight"]


@dataclass(frozen=True)
class Numerics:
    """Everything that decides the bytes of one quantized weight, but for the weight.

    Attributes:
        scheme: the scheme.
        dtype: safetensors tag of the weight's dtype, D.
        compute_dtype: `float32` keeps the quotient weight / scale in float32, as
            compressed-tensors does on accelerators; `weight` rounds it to D, as it does on CPU.
        observer: `minmax` takes the range of each group, `mse` the shrunk range with the least
            squared error.
    """

    scheme: Scheme
    dtype: str
    compute_dtype: ComputeDtype
    observer: Observer

    @property
    def torch_dtype(self) -> torch.dtype:
        """D."""
        return torch_dtype(self.dtype)

    @property
    def quotient_dtype(self) -> torch.dtype | None:
        """What quotients are rounded to, if anything."""
        return self.torch_dtype if self.compute_dtype == "weight" else None


@dataclass(frozen=True)
class Execution:
    """How to compute, without influence on the bytes of finite weights.

    Attributes:
        device: torch's name of the device.
        allow_nonfinite: quantize NaN and infinities instead of refusing them.
    """

    device: str
    allow_nonfinite: bool


@dataclass(frozen=True, eq=False)
class Decoded:
    """Some rows of a quantized weight, or some columns, as numbers.

    Attributes:
        codes: [rows, columns] float32, before scale and zero point.
        scale: float32, in the shape that scales are stored in.
        zero: likewise; None without zero points.
        half_steps: half the distance of each code to its next, as `codes`; None: one half.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    half_steps: Tensor | None = None


class Family(Protocol):
    """A numeric family: one module with these functions."""

    FORMATS: tuple[str, ...]

    def accepts(self, scheme: Scheme) -> bool:
        """Whether the family quantizes weights of this scheme."""

    def outputs(self, numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
        """The tensors that stand for a weight, by suffix."""

    def granule(self, scheme: Scheme) -> tuple[int, int]:
        """Rows, and columns, of the weight that belong together once `whole` is known."""

    def quantize(
        self, weight: Tensor, shape: tuple[int, ...], numerics: Numerics, whole: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Quantize some rows, or some columns.

        Args:
            weight: rows of the weight, or columns, as [rows, columns] float32, finite.
            shape: of the whole weight.
            numerics: how.
            whole: what was found over the whole weight, or its fused set, where the scheme has
                such a value: [low, high] for strategy tensor, for strategy channel where `weight`
                are columns (each [rows]), [amax] for tensor_group.

        Returns:
            The rows (columns) of each output; and what a reader computes from them, float32.
        """

    def decode(
        self, tensors: Mapping[str, Tensor], shape: tuple[int, int], scheme: Scheme
    ) -> Decoded:
        """Read what `quantize` wrote.

        Args:
            tensors: rows (columns) of each output.
            shape: of the weights that they stand for, [rows, columns].
            scheme: how these are quantized.
        """


class PlainFamily(Family, Protocol):
    """A family with scales of the weight's dtype, and schemes with one for the whole weight."""

    def roundtrip(self, numerics: Numerics) -> Roundtrip:
        """(grouped view, bounds) -> what a reader gets back of it."""

    def quantize_bits(
        self, bits: Bits, shape: tuple[int, ...], numerics: Numerics
    ) -> tuple[dict[str, Bits], tuple[float, float]]:
        """Quantize some stored rows without torch, to the same bytes.

        Args:
            bits: [rows, columns] of BF16, F16 or F32.
            shape: of the whole weight.
            numerics: how: a symmetric scheme, tiles with ranges of their own, observer minmax.

        Returns:
            The rows of each output; and the sums of squares of the error, and of the weight (NaN
            or infinite only where it is).
        """
