"""Memory pages of a file, made before the bytes that go there are known."""

from __future__ import annotations

import ctypes
import mmap

_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python's mmap module has no name for it


def touch_pages(descriptor: int, start: int, nbytes: int) -> bool:
    """Have the system make the pages of some bytes, as a write would, but leave the bytes alone.

    Args:
        descriptor: open for reading and writing.
        start: a multiple of the page size.
        nbytes: how many; the file has them.

    Returns:
        Whether this system can do that with this file.
    """
    try:
        madvise = ctypes.CDLL(None).madvise  # lets other threads go on, as mmap.madvise does not
        with mmap.mmap(descriptor, nbytes, offset=start) as mapping:
            window = (ctypes.c_char * nbytes).from_buffer(mapping)
            address = ctypes.c_void_p(ctypes.addressof(window))
            failed = madvise(address, ctypes.c_size_t(nbytes), _MADV_POPULATE_WRITE)
            del window  # or the mapping could not be closed
    except (OSError, AttributeError):
        return False
    return not failed
