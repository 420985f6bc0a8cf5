"""Reading tensors in blocks on a pool of threads, whatever is looked for in them."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.tensors import SourceFile, StoredTensor, from_bits
from ctcli.ops.runtime import load_torch
from ctcli.storage.rows import read_columns, read_rows
from ctcli.units import Advance

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.comparing import Errors

# As for the engine's jobs: small enough for temporaries to stay in cache.
BLOCK_ELEMENTS = 512 * 1024
_BLOCKS_TOGETHER = 8
# Columns are read in runs of at least so many: each row of one costs a system call, and memory.
_COLUMNS_AT_ONCE = 256
# What a block of elements needs while it is looked at, and what all may need together, torch aside.
_BYTES_PER_ELEMENT = 40
_MEMORY = 192_000_000


@dataclass
class Sight:
    """What was seen in some blocks of a scan.

    Attributes:
        faults: how many times, by tensor and what is wrong with its values.
        errors: of each block: its first row and column, and how far it is from a source.
    """

    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[tuple[int, int, Errors]] = field(default_factory=list)

    def fault(self, tensor: str, what: str, count: int) -> None:
        """Count values of a tensor that something is wrong with."""
        if count:
            self.faults[tensor, what] += count


class Reader:
    """Reads stored tensors, from any thread."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._descriptors: dict[SourceFile, int] = {}

    def read(self, tensor: StoredTensor, start: int, stop: int, columnwise: bool = False) -> Tensor:
        """Rows (columns) of a tensor, taken for [first dimension, all others]."""
        read = read_columns if columnwise else read_rows
        try:
            with os_errors_of(tensor.file.name, "reading"):
                bits = read(self._descriptor(tensor.file), tensor, start, stop)
        except EOFError as error:
            raise CtcliError(
                f"{tensor.file.name}: it became shorter while it was being read.",
                "Leave the checkpoint alone while ctcli runs, then run the same command again.",
            ) from error
        self._advance(bits.nbytes)
        return from_bits(bits.copy(), tensor.spec.dtype)

    def whole(self, tensor: StoredTensor) -> Tensor:
        """All of a tensor."""
        return self.read(tensor, 0, tensor.spec.shape[0] if tensor.spec.shape else 1)

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def _descriptor(self, file: SourceFile) -> int:
        with self._lock:
            if file not in self._descriptors:
                path = file.fetch(self._advance)
                self._descriptors[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]


class Scan(Protocol):
    """Something to look at in blocks."""

    @property
    def name(self) -> str:
        """Of the tensor or the module."""

    @property
    def tensor(self) -> StoredTensor:
        """Where its largest tensor lies: scans go through the files in order."""

    @property
    def nbytes(self) -> int:
        """Bytes to read."""

    @property
    def extent(self) -> Extent:
        """Its size, for cutting it into blocks."""

    def look(self, reader: Reader, start: int, stop: int, sight: Sight) -> None:
        """Look at rows (columns, or bytes) from `start` to `stop`, and note what is seen."""


@dataclass(frozen=True)
class Extent:
    """How a scan can be cut.

    Attributes:
        length: rows (columns, where it is columnwise).
        across: elements of each.
        granule: how many belong together.
        columnwise: whether it goes over columns.
    """

    length: int
    across: int
    granule: int = 1
    columnwise: bool = False

    @property
    def step(self) -> int:
        """The length of a block."""
        least = _COLUMNS_AT_ONCE if self.columnwise else 1
        height = max(least, BLOCK_ELEMENTS // max(1, self.across))
        return max(1, height // self.granule) * self.granule

    @property
    def memory(self) -> int:
        """Bytes that a block needs."""
        return min(self.step, self.length) * self.across * _BYTES_PER_ELEMENT

    def runs(self) -> Iterator[range]:
        """The blocks, several together; none where there are no elements."""
        together = _BLOCKS_TOGETHER * self.step
        for start in range(0, self.length if self.across else 0, together):
            yield range(start, min(start + together, self.length), self.step)


def scan_all(scans: Sequence[Scan], workers: int, advance: Advance) -> list[tuple[Scan, Sight]]:
    """Look at everything.

    Args:
        scans: what to look at.
        workers: threads; fewer, where blocks are so large that memory would not do.
        advance: is told bytes that were read.

    Returns:
        The scans and what was seen, in the order of the scans.

    Raises:
        CtcliError: something cannot be read.
    """
    load_torch()
    places = [(scan.tensor.file.name, scan.tensor.start) for scan in scans]
    ordered = sorted(range(len(scans)), key=lambda i: places[i])
    runs = [(i, run) for i in ordered for run in scans[i].extent.runs()]
    largest = max((scan.extent.memory for scan in scans), default=0)
    threads = max(1, min(workers, _MEMORY // max(1, largest)))
    reader = Reader(advance)
    pool = ThreadPoolExecutor(threads)
    sights = [Sight() for _ in scans]
    try:
        seen = pool.map(lambda item: _look(reader, scans[item[0]], item[1]), runs)
        for (i, _), sight in zip(runs, seen, strict=True):
            sights[i].faults.update(sight.faults)
            sights[i].errors.extend(sight.errors)
    finally:
        pool.shutdown(cancel_futures=True)
        reader.close()
    return list(zip(scans, sights, strict=True))


def _look(reader: Reader, scan: Scan, run: range) -> Sight:
    sight = Sight()
    for start in run:
        scan.look(reader, start, min(start + run.step, run.stop), sight)
    return sight
