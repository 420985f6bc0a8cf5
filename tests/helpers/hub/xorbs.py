"""The formats of Xet storage: xorbs, which hold chunks of files, and shards, which list them.

As https://huggingface.co/docs/xet describes them. A chunk is a header of 8 bytes and its content;
a shard has 48 bytes for each thing that it says of a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CHUNK = 1 << 16  # bytes of a chunk that is sent; clients cut elsewhere, by content
_FOOTER = b"XETBLOB"
_ENTRY = struct.Struct("<32s4I")
_END, _HAS_HASHES, _HAS_SHA256 = b"\xff" * 32, 1 << 31, 1 << 30


@dataclass(frozen=True)
class Term:
    """A run of chunks of one xorb."""

    xorb: str
    chunks: range


@dataclass(frozen=True)
class XetFile:
    """A file as a shard describes it."""

    terms: Sequence[Term]
    sha256: str


def encode_chunk(content: bytes) -> bytes:
    """A chunk, not compressed."""
    size = len(content).to_bytes(3, "little")
    return bytes(1) + size + bytes(1) + size + content


def decode_chunks(xorb: bytes) -> Iterator[bytes]:
    """The contents of a xorb's chunks."""
    at = 0
    while at < len(xorb) and xorb[at : at + len(_FOOTER)] != _FOOTER:
        size, way = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        stored = xorb[at + 8 : at + 8 + size]
        content = (bytes, _from_lz4, lambda packed: _ungroup(_from_lz4(packed)))[way](stored)
        assert len(content) == int.from_bytes(xorb[at + 5 : at + 8], "little")
        yield content
        at += 8 + size


def decode_shard(shard: bytes) -> Iterator[XetFile]:
    """The files that a shard describes."""
    at = 48
    while shard[at : at + 32] != _END:
        _, flags, count, _, _ = _ENTRY.unpack_from(shard, at)
        entries = [_ENTRY.unpack_from(shard, at + 48 * (1 + i)) for i in range(count)]
        terms = [Term(_hex(xorb), range(begin, end)) for xorb, _, _, begin, end in entries]
        at += 48 * (1 + count * (2 if flags & _HAS_HASHES else 1))
        assert flags & _HAS_SHA256, "the client states it"
        yield XetFile(terms, _hex(shard[at : at + 32]))
        at += 48


def _hex(digest: bytes) -> str:
    """A hash in hexadecimal, as Xet writes it: four numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _from_lz4(frame: bytes) -> bytes:
    """https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md; checksums are not looked at."""
    flags, out = frame[4], bytearray()
    at = 7 + (8 if flags & 8 else 0)
    while size := int.from_bytes(frame[at : at + 4], "little"):
        at, is_stored = at + 4, size >> 31
        size &= (1 << 31) - 1
        block = frame[at : at + size]
        out += block if is_stored else b""
        if not is_stored:
            _decode_block(block, out)
        at += size + (4 if flags & 16 else 0)
    return bytes(out)


def _decode_block(block: bytes, out: bytearray) -> None:
    """Literals, then a match: so many bytes, from so far back."""
    at = 0
    while True:
        token = block[at]
        literals, at = _length(block, at + 1, token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            return
        back = int.from_bytes(block[at : at + 2], "little")
        length, at = _length(block, at + 2, token & 15)
        start, length = len(out) - back, length + 4
        repeated = out[start : start + length]
        out += (repeated * -(-length // max(1, len(repeated))))[:length]


def _length(block: bytes, at: int, length: int) -> tuple[int, int]:
    if length == 15:
        more = 255
        while more == 255:
            more, at = block[at], at + 1
            length += more
    return length, at


def _ungroup(grouped: bytes) -> bytes:
    """First all bytes whose place is a multiple of 4, then those after them, and so on."""
    out, at = bytearray(len(grouped)), 0
    for i in range(4):
        size = len(range(i, len(grouped), 4))
        out[i::4] = grouped[at : at + size]
        at += size
    return bytes(out)
