"""Q8_0: groups of int8 under a float32 scale, as llama2.c has them (`quantize_q80`, export.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import float32, int8, uint32

from ctcli.ops.elements import bits_of, float_of
from ctcli.ops.jit import kernel
from ctcli.ops.loading import load, operand

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST_CODE = float32(127)
_ZERO, _ONE = float32(0), float32(1)
_MAGNITUDE = uint32(0x7FFFFFFF)


def quantize_q80(
    weight: NDArray[Any], tag: str, group: int
) -> tuple[NDArray[np.int8], NDArray[np.float32], float]:
    """Quantize: scale = max|w| / 127, q = w / scale rounded to nearest, ties to even.

    Where the scale is zero (a group of zeros, or of subnormals too small for one) so are the
    codes. In a group of subnormals the scale is coarse, and quotients beyond 127 become 127.

    Args:
        weight: [rows, columns] as stored, or floats of that dtype; columns a multiple of group.
        tag: dtype of the elements: BF16, F16, F32 or F64.
        group: elements that share a scale.

    Returns:
        codes [rows, columns] int8, scales [rows, columns / group] float32, and the largest
        |w - q * scale| of all. Scales that are not finite tell of weights that are not.
    """
    rows, columns = weight.shape
    elements, kind = operand(weight, tag)
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // group), np.float32)
    values = np.empty(group, np.float32)
    error = _quantize(
        elements.reshape(-1), kind, group, codes.reshape(-1), scales.reshape(-1), values
    )
    return codes, scales, float(error)


@kernel
def _quantize(
    elements: NDArray[Any],
    kind: int,
    group: int,
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    values: NDArray[np.float32],
) -> float32:
    """Fill codes and scales; the largest error, which is anything if a scale is not finite."""
    worst = uint32(0)
    for which in range(scales.size):
        first = which * group
        load(values, elements[first : first + group], kind)
        largest = uint32(0)
        for i in range(group):
            largest = max(largest, uint32(bits_of(values[i]) & _MAGNITUDE))
        scale = float32(float_of(largest) / _LARGEST_CODE)
        scales[which] = scale
        divisor = _ONE if scale == _ZERO else scale
        group_codes = codes[first : first + group]
        for i in range(group):
            code = np.rint(values[i] / divisor)
            code = min(max(code, -_LARGEST_CODE), _LARGEST_CODE)
            group_codes[i] = int8(code)
            error = float32(float32(code * scale) - values[i])
            worst = max(worst, uint32(bits_of(error) & _MAGNITUDE))
    return float_of(worst)
