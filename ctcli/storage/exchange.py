"""Two directory entries change places in one step, where the file system can do that."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h; https://man7.org/linux/man-pages/man2/rename.2.html
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of a file system change places: at no moment is one of them absent.

    Returns:
        False where the system or the file system cannot do it; then nothing was changed.

    Raises:
        OSError: it can, and failed.
    """
    failure = renameat2(os.fsencode(one), os.fsencode(other))
    if failure in _CANNOT:
        return False
    if failure:
        raise OSError(failure, os.strerror(failure), str(one), None, str(other))
    return True


def renameat2(one: bytes, other: bytes) -> int:
    """The system call with RENAME_EXCHANGE; returns an error number, 0 if it was done."""
    import ctypes  # needed once, at the end of a run that replaces something

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return errno.ENOSYS
    done = call(_AT_FDCWD, one, _AT_FDCWD, other, ctypes.c_uint(_RENAME_EXCHANGE))
    return 0 if done == 0 else ctypes.get_errno()
