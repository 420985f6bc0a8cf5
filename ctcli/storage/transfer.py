"""Bytes from file to file, in the kernel where it can."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from operator import itemgetter

from ctcli.units import Advance

# Small enough for a signal to be answered at once, and a multiple of every block size, so that
# file systems that share blocks can do so.
_STEP = 32 * 1024 * 1024
BUFFER_BYTES = 4 * 1024 * 1024
_NOT_IN_KERNEL = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
}
_MOST_PIECES = 1024  # that one call takes
_buffers = threading.local()


def copy_bytes(
    source: int, start: int, target: int, offset: int, nbytes: int, advance: Advance
) -> None:
    """Copy `nbytes` bytes between two descriptors without moving their positions.

    Raises:
        EOFError: the source ends before.
        OSError: reading or writing failed.
    """
    end = start + nbytes
    in_kernel = hasattr(os, "copy_file_range")
    while start < end:
        step = min(_STEP, end - start)
        copied = _kernel_copy(source, start, target, offset, step) if in_kernel else 0
        if not copied:
            in_kernel = False
            copied = buffered_copy(source, start, target, offset, step)
        start += copied
        offset += copied
        advance(copied)


def _kernel_copy(source: int, start: int, target: int, offset: int, nbytes: int) -> int:
    """Copy up to `nbytes`; 0 where the kernel cannot do it between these two files."""
    try:
        return os.copy_file_range(source, target, nbytes, start, offset)
    except OSError as error:
        if error.errno in _NOT_IN_KERNEL:
            return 0
        raise


def buffered_copy(source: int, start: int, target: int, offset: int, nbytes: int) -> int:
    """Copy up to `nbytes` through this thread's buffer and return how many.

    Raises:
        EOFError: the source has no bytes at `start`.
    """
    if not hasattr(_buffers, "view"):
        _buffers.view = memoryview(bytearray(BUFFER_BYTES))
    view = _buffers.view[: min(nbytes, BUFFER_BYTES)]
    count = os.preadv(source, [view], start)
    if not count:
        raise EOFError
    write_bytes(target, offset, view[:count])
    return count


def write_bytes(target: int, offset: int, content: bytes | memoryview) -> None:
    """Write all of `content` at `offset`."""
    _write_all(target, offset, [memoryview(content)])


def write_pieces(target: int, pieces: Iterable[tuple[int, memoryview]]) -> None:
    """Write pieces at their offsets; those that lie side by side at once."""
    together: list[memoryview] = []
    start = end = 0
    for offset, content in sorted(pieces, key=itemgetter(0)):
        if offset != end or len(together) == _MOST_PIECES:
            _write_all(target, start, together)
            together, start = [], offset
        together.append(content)
        end = offset + content.nbytes
    _write_all(target, start, together)


def _write_all(target: int, offset: int, pieces: Sequence[memoryview]) -> None:
    """Write pieces one behind the other, in several calls if one does not take all."""
    while pieces:
        written = os.pwritev(target, pieces, offset)
        offset += written
        while pieces and written >= pieces[0].nbytes:
            written -= pieces[0].nbytes
            pieces = pieces[1:]
        if written:
            pieces = [pieces[0][written:], *pieces[1:]]
