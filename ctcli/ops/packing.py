"""Small integers side by side in memory, as compressed-tensors lays them out.

Element i of a row occupies bits [i*B, (i+1)*B) of a little-endian bit stream, least significant
bit first; a row is padded with zero bits to whole 32-bit words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_LANES = {1: torch.int16, 2: torch.int32, 3: torch.int64}


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along columns into words.

    Args:
        codes: [rows, columns] uint8, each below 2**bits.
        bits: 1 to 8.

    Returns:
        [rows, ceil(columns * bits / 32)] int32.
    """
    rows, columns = codes.shape
    words = math.ceil(columns * bits / 32)
    padding = words * 32 // bits - columns if 32 % bits == 0 else -columns % 32
    if padding:
        codes = pad(codes, (0, padding))
    packed = pack_bytes(codes, bits)
    return packed[:, : 4 * words].contiguous().view(torch.int32).reshape(rows, words)


def pack_bytes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along columns into bytes.

    Neighbours are merged in wider and wider lanes (two in 16 bits, four in 32, eight in 64) until
    the merged bits are whole bytes.

    Args:
        codes: [rows, columns] uint8, each below 2**bits; columns fill whole lanes.
        bits: 1 to 8.

    Returns:
        [rows, columns * bits / 8] uint8.
    """
    rows, columns = codes.shape
    merged = codes.reshape(-1)  # flat: a single column may have any stride
    width, lane = bits, 8
    for step in (1, 2, 3):
        if width % 8 == 0:
            break
        merged = merged.view(_LANES[step])
        upper = merged >> (lane - width)
        if 2 * width > lane:  # then some bits of the lower element come along
            mask = (1 << width) - 1
            upper, merged = upper.bitwise_and_(mask << width), merged & mask
        merged = upper.bitwise_or_(merged)
        width, lane = 2 * width, 2 * lane
        if width != 8:  # at 8, the conversion below drops what is above
            merged = merged.bitwise_and_((1 << width) - 1)
    if width == 8:
        merged = merged.to(torch.uint8)
    elif width < lane:
        merged = merged.view(torch.uint8).view(-1, lane // 8)[:, : width // 8]
    return merged.contiguous().view(torch.uint8).view(rows, columns * bits // 8)


def unpack_words(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `pack_words`.

    Args:
        packed: [rows, words] int32.
        bits: 1 to 8.
        columns: how many elements a row has.

    Returns:
        [rows, columns] uint8.
    """
    rows = packed.shape[0]
    data = packed.reshape(-1).view(torch.uint8).view(rows, -1)  # a column may have any stride
    if missing := -data.shape[1] % bits:
        data = pad(data, (0, missing))
    return unpack_bytes(data, bits)[:, :columns]


def unpack_bytes(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack_bytes`, for whole runs of eight elements.

    Eight elements in 64 bits are parted in lanes of 32 bits (four each), 16 and 8.

    Args:
        packed: [rows, nbytes] uint8, nbytes a multiple of `bits`.
        bits: 1 to 8.

    Returns:
        [rows, nbytes * 8 / bits] uint8.
    """
    rows, nbytes = packed.shape
    if bits == 8:
        return packed
    if bits == 4:  # one step instead of three
        pairs = packed.to(torch.int16)
        pairs = pairs.bitwise_or(pairs << 4).bitwise_and_(0x0F0F)
        return pairs.view(torch.uint8).view(rows, 2 * nbytes)
    parted = pad(packed.reshape(-1, bits), (0, 8 - bits)).view(torch.int64)
    for lane in (32, 16, 8):
        half = lane * bits // 8
        lower = sum(((1 << half) - 1) << start for start in range(0, 64, 2 * lane))
        upper = parted.bitwise_and(lower << half).bitwise_left_shift_(lane - half)
        parted = parted.bitwise_and_(lower).bitwise_or_(upper)
    return parted.view(torch.uint8).view(rows, nbytes * 8 // bits)
