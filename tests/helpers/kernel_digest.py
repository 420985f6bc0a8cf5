"""A program that prints what the kernels make of some weights: bytes and sums, in hex."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcli.ops.backend import body
from ctcli.ops.blocks import compare
from ctcli.ops.quantized import LEAST_SQUARES, Rounding, Search

ROUNDINGS = (
    Rounding("float8", "BF16", False, (1, None), 8),
    Rounding("float8", "F32", False, (5, 16), 8),
    Rounding("float8", "F16", True, (1, 32), 8),
    Rounding("integers", "BF16", False, (1, 16), 4, packed=True),
    Rounding("integers", "F16", True, (1, None), 3, packed=True, symmetric=False),
    Rounding("integers", "F32", True, (5, 16), 8),
    Rounding("integers", "BF16", True, (1, 48), 4, symmetric=False, search=LEAST_SQUARES),
    Rounding("integers", "BF16", False, (1, 32), 4, packed=True, signed=True),
    Rounding("integers", "F32", False, (1, 48), 3, search=Search((1.08, 0.7, -1.0, -0.7), 4)),
    Rounding("nvfp4", "BF16", False, (1, 16), 4, total=2.625),
    Rounding("mx", "F16", True, (1, 32), 4),
    Rounding("mx", "BF16", False, (1, 32), 8),
)


def main(formats: Sequence[str]) -> None:
    """Quantize small blocks of each dtype, and compare them, in some formats or all."""
    compiled = body("cpu")
    weight = np.random.default_rng(1).standard_t(3, (7, 96)).astype(np.float32)
    weight[1] = 0
    weight[2, ::3] = -0.0
    weight[3] *= np.float32(1e-38)
    blocks: dict[str, NDArray[Any]] = {
        "F32": weight,
        "F16": weight.astype(np.float16).view(np.uint16),
    }
    blocks["BF16"] = (weight.view(np.uint32) >> 16).astype(np.uint16)
    for rounding in (each for each in ROUNDINGS if not formats or each.format in formats):
        for search in (None, LEAST_SQUARES) if rounding.format == "mx" else (None,):
            how = replace(rounding, search=search or rounding.search)
            found = compiled.quantize(blocks[how.dtype], how.dtype, how, None)
            zeros = None if how.symmetric else found.marks
            arrays = (found.codes, found.scales, found.marks)
            print(*(array.tobytes().hex() for array in arrays))  # noqa: T201
            block = blocks[how.dtype]
            again = compare(block, how.dtype, found.codes, found.scales, zeros, how)
            sums = (*found.sums[0], again.error, again.energy, again.excess)
            print(*(float(each).hex() for each in sums), again)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
