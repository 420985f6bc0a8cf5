"""Settings of this process that the arithmetic wants."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Mapping

# glibc's mallopt: a block of at least MMAP bytes is mapped anew each time it is asked for, and
# more than TRIM free bytes go back to the system. The limit of the first is 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_TRIM_BYTES, _MMAP_BYTES, _SMALL_BYTES = 1 << 30, 32 << 20, 1 << 20


def reuse_memory() -> None:
    """Let temporaries use the same memory again. Call it before there are threads.

    Fresh pages for every temporary would cost a third of the whole time; and an arena of a
    thread's own, unlike the one that all share, gives its pages back whatever the limits are.
    """
    _mallopt({_M_MMAP_THRESHOLD: _MMAP_BYTES, _M_TRIM_THRESHOLD: _TRIM_BYTES, _M_ARENA_MAX: 1})


def give_back_memory() -> None:
    """Let large blocks go back to the system at once, as where nothing is computed.

    Of very many tensors, tables that are needed for a moment take a tenth of all memory each.
    """
    _mallopt({_M_MMAP_THRESHOLD: _SMALL_BYTES, _M_TRIM_THRESHOLD: _SMALL_BYTES})


def _mallopt(settings: Mapping[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for setting, value in settings.items():
        mallopt(setting, value)


def limit_blas() -> None:
    """Keep numpy's OpenBLAS to the calling thread. Call it before numpy is imported.

    Our own threads share the cores already.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def keep_all_objects() -> None:
    """Do not look for garbage in cycles until `collect_again`.

    Plans of large checkpoints are hundreds of thousands of objects that all stay, and looking
    through them again and again is a third of the time that planning takes.
    """
    gc.disable()


def collect_again() -> None:
    """Look for garbage again, but not among what there is now."""
    gc.freeze()
    gc.enable()
