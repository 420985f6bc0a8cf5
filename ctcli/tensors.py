"""What a tensor looks like (dtype, shape) and where its bytes come from, without reading them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ctcli.units import Advance

# Bits per element by safetensors tag, in the order of the format's own enumeration; a file lists
# its tensors by falling rank in it, so that wide elements stay aligned.
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
DTYPE_RANK = {tag: rank for rank, tag in enumerate(DTYPE_BITS)}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's safetensors dtype tag (`BF16`, `F8_E4M3`, ...) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Size of the data in bits; a multiple of 8 in every valid file."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.bits // 8


class SourceFile(Protocol):
    """A file of the source checkpoint, on this disk or on a hub."""

    @property
    def name(self) -> str:
        """Path inside the checkpoint, with forward slashes."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def stamp(self) -> str:
        """Identifies the content without reading it (modification time, or hash on the hub)."""

    def read(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `start` (fewer at the end of the file)."""

    def fetch(self, advance: Advance) -> Path:
        """Return a local path to the whole file, downloading it if need be."""

    @property
    def location(self) -> Path:
        """A path on the file system where the file lies, or will lie once it is fetched."""

    @property
    def fetch_bytes(self) -> int:
        """Bytes that `fetch` has to download."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies in a source file as `spec.nbytes` bytes from `start`."""

    spec: TensorSpec
    file: SourceFile
    start: int
