"""What a quantized block stands for, by the decoders that dequantizing uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctcli.ops.decoding import (
    Codes,
    Elements,
    decoded,
    e2m1_elements,
    e4m3_elements,
    float6_elements,
    integer_elements,
    signed_elements,
)
from ctcli.ops.quantized import QuantizedBlock, Rounding


def values_of(
    found: QuantizedBlock, rounding: Rounding, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """The values of a block [rows, columns] that was quantized so."""
    rows, columns = shape
    bits, elements = _elements(rounding)
    zeros = None if rounding.symmetric else found.marks
    tile = (rounding.tile[0] or rows, rounding.tile[1] or columns)
    codes = Codes(found.codes, bits, elements, found.scales, zeros, tile)
    return decoded(codes, columns, "F32")[0]


def half_steps(
    values: NDArray[np.float32], found: QuantizedBlock, rounding: Rounding
) -> NDArray[np.float64]:
    """Half the distance from each value to that of the next larger magnitude [rows, columns]."""
    height, width = (size or values.shape[i] for i, size in enumerate(rounding.tile))
    spread = np.abs(found.scales.astype(np.float64)).repeat(height, 0).repeat(width, 1)
    scales: NDArray[np.float64] = spread[: values.shape[0], : values.shape[1]]
    if rounding.format == "integers":
        return scales / 2
    mantissa, smallest = {8: (3, -6), 6: (3, 0), 4: (1, 0)}[rounding.bits]
    elements = np.divide(values, scales, out=np.zeros(values.shape), where=scales != 0)
    exponents = np.where(values != 0, np.frexp(elements)[1] - 1, smallest)
    steps: NDArray[np.float64] = np.ldexp(scales, np.maximum(exponents, smallest) - mantissa - 1)
    return steps


def _elements(rounding: Rounding) -> tuple[int, Elements]:
    if rounding.format == "integers":
        if rounding.packed:
            return rounding.bits, integer_elements(rounding.bits, 1 << (rounding.bits - 1))
        return 8, signed_elements()
    floats = {4: e2m1_elements(), 6: float6_elements(2), 8: e4m3_elements()}
    return rounding.bits, floats[rounding.bits]
