"""Small integers side by side in memory, as compressed-tensors lays them out.

Element i of a row occupies bits [i*B, (i+1)*B) of a little-endian bit stream, least significant
bit first; a row is padded with zero bits to whole 32-bit words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[np.uint8]

_LANES: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint16, 2: np.uint32, 3: np.uint64}


def offset_binary(codes: Codes, bits: int) -> Codes:
    """Two's complement of eight bits to the unsigned q + 2**(bits-1)."""
    return (codes & np.uint8(2**bits - 1)) ^ np.uint8(1 << (bits - 1))


def pack_words(codes: Codes, bits: int) -> NDArray[np.uint32]:
    """Pack codes along columns into words.

    Args:
        codes: [rows, columns], each below 2**bits.
        bits: 1 to 8.

    Returns:
        [rows, ceil(columns * bits / 32)].
    """
    rows, columns = codes.shape
    words = math.ceil(columns * bits / 32)
    padding = words * 32 // bits - columns if 32 % bits == 0 else -columns % 32
    padded: Codes = np.pad(codes, ((0, 0), (0, padding))) if padding else codes
    packed = pack_bytes(padded, bits)[:, : 4 * words]
    return packed.reshape(-1).view(np.uint32).reshape(rows, words)  # one column may have any stride


def pack_bytes(codes: Codes, bits: int) -> Codes:
    """Pack codes along columns into bytes.

    Neighbours are merged in wider and wider lanes (two in 16 bits, four in 32, eight in 64) until
    the merged bits are whole bytes.

    Args:
        codes: [rows, columns], each below 2**bits; columns fill whole lanes.
        bits: 1 to 8.

    Returns:
        [rows, columns * bits / 8].
    """
    rows, columns = codes.shape
    merged: NDArray[np.unsignedinteger[Any]] = codes.reshape(-1)
    width, lane = bits, 8
    for step in (1, 2, 3):
        if width % 8 == 0:
            break
        of_lane = _LANES[step]
        merged = merged.view(of_lane)
        upper = merged >> of_lane(lane - width)
        if 2 * width > lane:  # then some bits of the lower element come along
            mask = (1 << width) - 1
            upper &= of_lane(mask << width)
            merged = merged & of_lane(mask)
        upper |= merged
        merged, width, lane = upper, 2 * width, 2 * lane
        if width != 8:  # at 8, the conversion below drops what is above
            merged &= of_lane((1 << width) - 1)
    if width == 8:
        return merged.astype(np.uint8, copy=False).reshape(rows, columns * bits // 8)
    parts = merged.view(np.uint8).reshape(-1, lane // 8)[:, : width // 8]
    return parts.reshape(rows, columns * bits // 8)


def unpack_words(packed: NDArray[np.uint32], bits: int, columns: int) -> Codes:
    """Undo `pack_words`.

    Args:
        packed: [rows, words].
        bits: 1 to 8.
        columns: how many elements a row has.

    Returns:
        [rows, columns].
    """
    data = packed.reshape(-1).view(np.uint8).reshape(len(packed), 4 * packed.shape[1])
    if missing := -data.shape[1] % bits:
        data = np.pad(data, ((0, 0), (0, missing)))
    return unpack_bytes(data, bits)[:, :columns]


def unpack_bytes(packed: Codes, bits: int) -> Codes:
    """Undo `pack_bytes`, for whole runs of eight elements.

    Eight elements in 64 bits are parted in lanes of 32 bits (four each), 16 and 8.

    Args:
        packed: [rows, nbytes], nbytes a multiple of `bits`.
        bits: 1 to 8.

    Returns:
        [rows, nbytes * 8 / bits].
    """
    rows, nbytes = packed.shape
    if bits == 8:
        return packed
    if bits == 4:  # one step instead of three
        pairs = packed.astype(np.uint16)
        pairs |= pairs << np.uint16(4)
        pairs &= np.uint16(0x0F0F)
        return pairs.view(np.uint8).reshape(rows, 2 * nbytes)
    spread = np.zeros((packed.size // bits, 8), np.uint8)
    spread[:, :bits] = packed.reshape(-1, bits)
    parted = spread.view(np.uint64)
    for lane in (32, 16, 8):
        half = lane * bits // 8
        lower = sum(((1 << half) - 1) << start for start in range(0, 64, 2 * lane))
        upper = parted & np.uint64(lower << half)
        upper <<= np.uint64(lane - half)
        parted &= np.uint64(lower)
        parted |= upper
    return parted.view(np.uint8).reshape(rows, nbytes * 8 // bits)
