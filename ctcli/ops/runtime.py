"""Settings of this process that the arithmetic wants."""

from __future__ import annotations

import ctypes

import torch

# glibc's mallopt: a block of at least MMAP bytes is mapped anew each time it is asked for, and
# more than TRIM free bytes go back to the system. The limit of the first is 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 1 << 30, 32 << 20


def prepare() -> None:
    """Keep torch to the calling thread, and let temporaries use the same memory again.

    Our own threads share the cores already, and sums must not depend on their number. Fresh pages
    for every temporary would cost a third of the whole time.
    """
    torch.set_num_threads(1)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
