"""One number at a time between dtypes, for kernels to inline; branch-free, so that loops vectorise.

All rounding is to nearest, ties to even. E4M3, E2M1, E2M3 and E8M0: OCP Microscaling Formats
specification 1.0, section 5. Numbers are numpy scalars, so that it is all the same without numba.
"""

from __future__ import annotations

from numpy import float32, float64, int32, uint8, uint16, uint32

from ctcli.ops.jit import merged

# Dtypes as kernels know them, by safetensors tag.
BF16, F16, F32, F64 = 0, 1, 2, 3
KINDS = {"BF16": BF16, "F16": F16, "F32": F32, "F64": F64}

E4M3_MAX, E2M1_MAX, E2M3_MAX = float32(448), float32(6), float32(7.5)
E4M3_NAN, E2M1_NAN = uint8(0x7F), uint8(0xF)  # E2M1 has none: it becomes -6

_ZERO = float32(0)
_HALF, _EIGHTH = float32(0.5), float32(0.125)
_MAGNITUDE = uint32(0x7FFFFFFF)
_EXPONENT = uint32(0x7F800000)
_SMALLEST_F16 = float32(2.0**-14)
_STEPS_F16, _STEPS_E4M3 = float32(2.0**-24), float32(2.0**9)
_BITS_HALF = uint32(0x3F000000)
_BITS_ONE = uint32(0x3F800000)
_BITS_SMALLEST_E4M3 = uint32(0x3C800000)
# To the bits of 2**e, this adds up to those of 3 * 2**(e + 19), and of 3 * 2**(e + 21).
_MAGIC_E4M3 = uint32((20 << 23) | (1 << 22))
_MAGIC_E2M1 = uint32((22 << 23) | (1 << 22))
# What the exponent's bits are too large by, beside steps: 8 * (127 - 6), 2 * 127.
_CODE_E4M3, _CODE_E2M1, _CODE_E2M3 = uint32(968), uint32(254), uint32(1016)
_BF16_NAN, _F16_NAN = uint32(0x7FC0), uint32(0x7E00)


@merged
def bits_of(x: float32) -> uint32:
    """The bits of a float32."""
    return float32(x).view(uint32)


@merged
def float_of(bits: uint32) -> float32:
    """The float32 with these bits."""
    return uint32(bits).view(float32)


@merged
def squared(x: float32) -> float32:
    """X * x."""
    return float32(x * x)


@merged
def from_bf16(bits: uint16) -> float32:
    """The value of bits of BF16."""
    return float_of(uint32(bits) << uint32(16))


@merged
def to_bf16(x: float32) -> uint16:
    """The bits of a float32 rounded to BF16; of NaN, 0x7FC0."""
    bits = bits_of(x)
    rounded = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
    return uint16(rounded if x == x else _BF16_NAN)  # noqa: PLR0124


@merged
def from_f16(bits: uint16) -> float32:
    """The value of bits of F16."""
    wide = uint32(bits)
    fraction = wide & uint32(0x3FF)
    shifted = (wide & uint32(0x7FFF)) << uint32(13)
    normal = uint32(shifted + uint32(112 << 23))
    subnormal = bits_of(float32(int32(fraction)) * _STEPS_F16)
    magnitude = normal if wide & uint32(0x7C00) else subnormal
    if wide & uint32(0x7C00) == uint32(0x7C00):
        magnitude = uint32(shifted | _EXPONENT)
    return float_of(magnitude | ((wide & uint32(0x8000)) << uint32(16)))


@merged
def to_f16(x: float32) -> uint16:
    """The bits of a float32 rounded to F16; of NaN, 0x7E00."""
    bits = bits_of(x)
    magnitude = bits & _MAGNITUDE
    odd = (magnitude >> uint32(13)) & uint32(1)
    rounded = (magnitude + uint32(0xFFF) + odd) >> uint32(13)
    normal = min(uint32(rounded), uint32((112 << 10) + 0x7C00)) - uint32(112 << 10)
    # Float32 next to 1/2 has the steps of subnormal F16.
    subnormal = bits_of(float_of(magnitude) + _HALF) - _BITS_HALF
    found = subnormal if float_of(magnitude) < _SMALLEST_F16 else normal
    found = uint32(found) | ((bits >> uint32(16)) & uint32(0x8000))
    return uint16(found if x == x else _F16_NAN)  # noqa: PLR0124


@merged
def to_odd(x: float64) -> float32:
    """A float64 as float32, such that rounding it further is rounding `x` once.

    What is not exact becomes odd, on the side of zero (Boldo and Melquiond 2008,
    doi:10.1109/TC.2007.70819).
    """
    nearest = float32(x)
    back = float64(nearest)
    bits = bits_of(nearest)
    away = uint32(1) if abs(back) > abs(x) else uint32(0)
    odd = (bits - away) | uint32(1)
    return float_of(uint32(odd) if back != x else bits)


@merged
def round_to(x: float32, kind: int) -> float32:
    """A float32 rounded to a dtype of `KINDS`, as float32: rD."""
    if kind == BF16:
        return from_bf16(to_bf16(x))
    if kind == F16:
        return from_f16(to_f16(x))
    return x


@merged
def round_scale(x: float32, kind: int) -> float32:
    """A scale rounded to a dtype of `KINDS`; zero, of an empty group, becomes its epsilon."""
    rounded = round_to(x, kind)
    if rounded != _ZERO:
        return rounded
    if kind == BF16:
        return float32(2.0**-7)
    if kind == F16:
        return float32(2.0**-10)
    return float32(2.0**-23) if kind == F32 else float32(2.0**-52)


@merged
def rounded_e4m3(magnitude: float32) -> tuple[uint32, float32]:
    """The E4M3 code and value of a float32 that is not negative; above 448, and of NaN, of 448.

    With 2**e <= x, E4M3 has steps of 2**e / 8 (2**-9 below 2**-6), which is the spacing of float32
    at 3 * 2**(e + 19): adding that number rounds, and leaves the steps in the lowest bits. Eight of
    them are 2**e, whose code is 8 (e + 7).
    """
    x = magnitude if magnitude < E4M3_MAX else E4M3_MAX  # noqa: FURB136 (NaN)
    power = max(uint32(bits_of(x) & _EXPONENT), _BITS_SMALLEST_E4M3)
    magic = uint32(power + _MAGIC_E4M3)
    shifted = float32(x + float_of(magic))
    steps = uint32(bits_of(shifted) - magic)
    code = uint32(uint32(steps + uint32(power >> uint32(20))) - _CODE_E4M3)
    return code, float32(shifted - float_of(magic))


@merged
def to_e4m3(x: float32) -> uint8:
    """The E4M3 code of a float32, saturated to +-448; -0 stays -0, NaN is 0x7F."""
    bits = bits_of(x)
    code, _ = rounded_e4m3(float_of(bits & _MAGNITUDE))
    signed = uint8(code | ((bits >> uint32(24)) & uint32(0x80)))
    return signed if x == x else E4M3_NAN  # noqa: PLR0124


@merged
def from_e4m3(code: uint8) -> float32:
    """The value of an E4M3 code; those of NaN read as +-480."""
    wide = uint32(code)
    magnitude = wide & uint32(0x7F)
    normal = uint32((magnitude << uint32(20)) + uint32(120 << 23))
    subnormal = bits_of(float32(int32(magnitude)) / _STEPS_E4M3)
    found = normal if magnitude >= uint32(8) else subnormal
    return float_of(found | ((wide & uint32(0x80)) << uint32(24)))


@merged
def rounded_e2m1(magnitude: float32) -> tuple[uint32, float32]:
    """The E2M1 code and value of a float32 that is not negative; above 6, and of NaN, of 6.

    As `rounded_e4m3`, with steps of 2**e / 2 (1/2 below 1) and 3 * 2**(e + 21); two of them are
    2**e, whose code is 2 (e + 1).
    """
    x = magnitude if magnitude < E2M1_MAX else E2M1_MAX  # noqa: FURB136 (NaN)
    power = max(uint32(bits_of(x) & _EXPONENT), _BITS_ONE)
    magic = uint32(power + _MAGIC_E2M1)
    shifted = float32(x + float_of(magic))
    steps = uint32(bits_of(shifted) - magic)
    code = uint32(uint32(steps + uint32(power >> uint32(22))) - _CODE_E2M1)
    return code, float32(shifted - float_of(magic))


@merged
def to_e2m1(x: float32) -> uint8:
    """The E2M1 code of a float32, saturated to +-6; zero is 0, what rounds to it keeps its sign."""
    bits = bits_of(x)
    code, _ = rounded_e2m1(float_of(bits & _MAGNITUDE))
    signed = uint8(code | (uint32(8) if x < _ZERO else uint32(0)))
    return signed if x == x else E2M1_NAN  # noqa: PLR0124


@merged
def from_e2m1(code: uint8) -> float32:
    """The value of an E2M1 code."""
    wide = uint32(code)
    magnitude = wide & uint32(7)
    normal = uint32((magnitude << uint32(22)) + uint32(126 << 23))
    found = normal if magnitude >= uint32(2) else bits_of(float32(int32(magnitude)) * _HALF)
    return float_of(found | ((wide & uint32(8)) << uint32(28)))


@merged
def rounded_e2m3(magnitude: float32) -> tuple[uint32, float32]:
    """The E2M3 code and value of a float32 that is not negative; above 7.5, and of NaN, of 7.5.

    As `rounded_e4m3`, with steps of 2**e / 8 (1/8 below 1); eight of them are 2**e, whose code is
    8 (e + 1).
    """
    x = magnitude if magnitude < E2M3_MAX else E2M3_MAX  # noqa: FURB136 (NaN)
    power = max(uint32(bits_of(x) & _EXPONENT), _BITS_ONE)
    magic = uint32(power + _MAGIC_E4M3)
    shifted = float32(x + float_of(magic))
    steps = uint32(bits_of(shifted) - magic)
    code = uint32(uint32(steps + uint32(power >> uint32(20))) - _CODE_E2M3)
    return code, float32(shifted - float_of(magic))


@merged
def from_e2m3(code: uint8) -> float32:
    """The value of an E2M3 code."""
    wide = uint32(code)
    magnitude = wide & uint32(31)
    normal = uint32((magnitude << uint32(20)) + uint32(126 << 23))
    found = normal if magnitude >= uint32(8) else bits_of(float32(int32(magnitude)) * _EIGHTH)
    return float_of(found | ((wide & uint32(32)) << uint32(26)))


@merged
def from_e8m0(exponent: uint8) -> float32:
    """2**(exponent - 127), of 0 to 254."""
    wide = uint32(exponent)
    return float_of(wide << uint32(23) if wide else uint32(1 << 22))
