"""What a tensor looks like (dtype, shape) and where its bytes come from, without reading them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from ctcli.ops.dtypes import DTYPES
from ctcli.units import Advance


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's safetensors dtype tag (`BF16`, `F8_E4M3`, ...) and shape."""

    dtype: str
    shape: tuple[int, ...]
    bits: int = field(init=False, repr=False, compare=False)
    """Size of the data in bits; a multiple of 8 in every valid file."""
    nbytes: int = field(init=False, repr=False, compare=False)
    """Size of the data in bytes."""

    def __post_init__(self) -> None:
        # Found once: plans sum sizes several times.
        bits = math.prod(self.shape) * DTYPES[self.dtype].bits
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "nbytes", bits // 8)


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

    @property
    def is_streamed(self) -> bool:
        """Whether it is fetched ahead of the jobs that read it, and given up after them."""

    def fetch_pieces(self, pieces: Sequence[range], advance: Advance) -> Path:
        """Fetch only these bytes of a streamed file; they lie where they do in the whole one."""

    def release(self) -> None:
        """Give up what was fetched, if it is streamed."""


def content_of(file: SourceFile) -> bytes:
    """All bytes of a small file; one on a hub goes through its cache."""
    return file.fetch(lambda _: None).read_bytes()


class Stored(NamedTuple):
    """A tensor that lies in a source file as `spec.nbytes` bytes from `start`."""

    spec: TensorSpec
    file: SourceFile
    start: int


@dataclass(frozen=True, slots=True)
class Known:
    """A small tensor whose bytes are known beforehand."""

    spec: TensorSpec
    content: bytes
