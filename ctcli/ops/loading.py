"""Stored elements as numbers, for kernels to read a row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float64, uint16
from numpy.typing import NDArray

from ctcli.ops.elements import BF16, F16, KINDS, from_bf16, from_f16
from ctcli.ops.jit import inlined

_VIEWS = {"F32": np.float32, "F64": np.float64}


def operand(elements: NDArray[Any], tag: str) -> tuple[NDArray[Any], int]:
    """Stored elements as kernels take them, and the kind of their dtype.

    Args:
        elements: their bits, as unsigned integers of their size, or floats of that dtype.
        tag: BF16, F16, F32 or F64.

    Returns:
        uint16 bits or floats, C-contiguous, in the same memory if they were; and the kind.
    """
    view = elements.view(_VIEWS.get(tag, np.uint16))
    return np.ascontiguousarray(view), KINDS[tag]


@inlined
def load(out: NDArray[Any], source: NDArray[Any], kind: int) -> None:
    """Convert stored elements: out[i] = source[i], as a float32 or float64.

    Args:
        out: [n] float32 or float64; float64 that does not fit in float32 becomes infinite.
        source: [n or more] of `operand`.
        kind: of `operand`.
    """
    if kind == BF16:
        for i in range(out.size):
            out[i] = from_bf16(uint16(source[i]))
    elif kind == F16:
        for i in range(out.size):
            out[i] = from_f16(uint16(source[i]))
    else:
        for i in range(out.size):
            out[i] = float64(source[i])
