"""The element types of the safetensors format, and all facts about them.

Formats of floats: IEEE 754-2019; bfloat16; FP8 as in "FP8 Formats for Deep Learning" (Micikevicius
et al., 2022, arXiv:2209.05433).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass


class Dtype(NamedTuple):
    """An element type.

    Attributes:
        bits: size of an element.
        torch_name: torch's name of the type; None where torch has none.
        mantissa: stored bits of a float's significand; 0 where the type is not one of the floats
            whose magnitudes are ordered as their bits are.
        bias: of its exponent.
        infinity: magnitudes from these bits on are infinite or NaN (E4M3 has no infinities).
    """

    bits: int
    torch_name: str | None
    mantissa: int = 0
    bias: int = 0
    infinity: int = 0

    @property
    def nbytes(self) -> int:
        """Size of an element in bytes; 0 where several share one."""
        return self.bits // 8

    @property
    def epsilon(self) -> float:
        """The step from 1 to the next larger number."""
        return 2.0**-self.mantissa

    @property
    def largest(self) -> float:
        """The largest finite number."""
        exponent, fraction = divmod(self.infinity - 1, 1 << self.mantissa)
        return float(1 + fraction * self.epsilon) * 2.0 ** (exponent - self.bias)

    @property
    def overflow(self) -> float:
        """What is that large, or larger, rounds to infinity: half a step above the largest."""
        top = (self.infinity - 1 >> self.mantissa) - self.bias
        return self.largest + 2.0 ** (top - self.mantissa - 1)

    @property
    def one(self) -> bytes:
        """The number 1 as it is stored."""
        return (self.bias << self.mantissa).to_bytes(self.nbytes, "little")


# By safetensors tag, in the order of the format's own enumeration; a file lists its tensors by
# falling rank in it, so that wide elements stay aligned.
DTYPES = {
    "BOOL": Dtype(8, "bool"),
    "F4": Dtype(4, None),
    "F6_E2M3": Dtype(6, None),
    "F6_E3M2": Dtype(6, None),
    "U8": Dtype(8, "uint8"),
    "I8": Dtype(8, "int8"),
    "F8_E5M2": Dtype(8, "float8_e5m2", 2, 15, 0x7C),
    "F8_E4M3": Dtype(8, "float8_e4m3fn", 3, 7, 0x7F),
    "F8_E8M0": Dtype(8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": Dtype(8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": Dtype(8, "float8_e5m2fnuz"),
    "I16": Dtype(16, "int16"),
    "U16": Dtype(16, "uint16"),
    "F16": Dtype(16, "float16", 10, 15, 0x7C00),
    "BF16": Dtype(16, "bfloat16", 7, 127, 0x7F80),
    "I32": Dtype(32, "int32"),
    "U32": Dtype(32, "uint32"),
    "F32": Dtype(32, "float32", 23, 127, 0x7F80_0000),
    "C64": Dtype(64, "complex64"),
    "F64": Dtype(64, "float64", 52, 1023, 0x7FF0 << 48),
    "I64": Dtype(64, "int64"),
    "U64": Dtype(64, "uint64"),
}
DTYPE_RANK = {tag: rank for rank, tag in enumerate(DTYPES)}

# Floats that ctcli computes with; those that models are trained and served in, which can be
# quantized and are what scales are stored in; and those of 16 bits.
FLOATS = ("BF16", "F16", "F32", "F64")
WEIGHT_FLOATS = ("BF16", "F16", "F32")
SHORT_FLOATS = ("BF16", "F16")
# A tensor `weight` of these is the codes of a quantized one.
CODES = ("F8_E4M3", "F8_E5M2", "I8", "U8", "F4")
