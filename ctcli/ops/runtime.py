"""Settings of this process that the arithmetic wants."""

from __future__ import annotations

import ctypes
import os

# glibc's mallopt: a block of at least MMAP bytes is mapped anew each time it is asked for, and
# more than TRIM free bytes go back to the system. The limit of the first is 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_TRIM_BYTES, _MMAP_BYTES = 1 << 30, 32 << 20


def reuse_memory() -> None:
    """Let temporaries use the same memory again. Call it before there are threads.

    Fresh pages for every temporary would cost a third of the whole time; and an arena of a
    thread's own, unlike the one that all share, gives its pages back whatever the limits are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_ARENA_MAX, 1)


def limit_blas() -> None:
    """Keep numpy's OpenBLAS to the calling thread. Call it before numpy is imported.

    Our own threads share the cores already.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def load_torch() -> None:
    """Import torch, and keep it to the calling thread.

    Our own threads share the cores already, and sums must not depend on their number.
    """
    import torch

    torch.set_num_threads(1)
