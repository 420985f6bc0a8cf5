"""AWQ's words: eight codes of four bits for eight rows, of one column, in an order of their own.

Layout: https://github.com/casper-hansen/AutoAWQ, `awq/utils/packing_utils.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import uint32

from ctcli.ops.jit import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Row j of eight is in bits 4 * NIBBLES[j] to 4 * NIBBLES[j] + 4 of a word.
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def in_order(words: Array) -> Array:
    """Words whose nibble j is that of row j."""
    found = np.zeros_like(words)
    for row, nibble in enumerate(NIBBLES):
        found |= (words >> np.uint32(4 * nibble) & np.uint32(15)) << np.uint32(4 * row)
    return found


def packed_by_rows(words: Array) -> Array:
    """The same codes, packed along the columns, the first in the lowest bits.

    Args:
        words: uint32 [rows / 8, columns].

    Returns:
        uint32 [rows, ceil(columns / 8)].
    """
    found = np.empty((8 * len(words), -(-words.shape[1] // 8)), np.uint32)
    _pack(np.ascontiguousarray(words), found, np.empty(8, np.uint32))
    return found


@inlined
def _swap(a: uint32, b: uint32, width: uint32, mask: uint32) -> tuple[uint32, uint32]:
    """Swap the upper fields of `a`, above `width` bits each, with the lower ones of `b`."""
    both = ((a >> width) ^ b) & mask
    return uint32(a ^ uint32(both << width)), uint32(b ^ both)


@inlined
def _transposed(w: Array) -> None:
    """Eight words as a matrix of eight by eight nibbles, transposed: three rounds of swaps."""
    for i in range(4):
        w[i], w[i + 4] = _swap(w[i], w[i + 4], uint32(16), uint32(0x0000FFFF))
    for i in (0, 1, 4, 5):
        w[i], w[i + 2] = _swap(w[i], w[i + 2], uint32(8), uint32(0x00FF00FF))
    for i in (0, 2, 4, 6):
        w[i], w[i + 1] = _swap(w[i], w[i + 1], uint32(4), uint32(0x0F0F0F0F))


@kernel
def _pack(words: Array, found: Array, w: Array) -> None:
    """Fill `found`; `w` is scratch of eight words."""
    columns = words.shape[1]
    for c in range(len(words)):
        for k in range(found.shape[1]):
            for i in range(8):
                w[i] = words[c, 8 * k + i] if 8 * k + i < columns else uint32(0)
            _transposed(w)
            found[8 * c, k], found[8 * c + 1, k] = w[0], w[4]
            found[8 * c + 2, k], found[8 * c + 3, k] = w[1], w[5]
            found[8 * c + 4, k], found[8 * c + 5, k] = w[2], w[6]
            found[8 * c + 6, k], found[8 * c + 7, k] = w[3], w[7]
