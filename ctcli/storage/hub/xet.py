"""What the exceptions of the client's Rust part mean, which moves large files (Xet storage).

It raises Python's own: RuntimeError, and ConnectionError, TimeoutError, PermissionError and OSError
without an error number. What a server answered, or the disk, is in the text alone.
"""

from __future__ import annotations

import errno
import re

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

# How reqwest writes it, and how the standard library does.
_STATUS = re.compile(r"\bHTTP status \w+ error \((\d{3})\b")
_ERROR_NUMBER = re.compile(r"\bI/?O error: .*\(os error (\d+)\)$", re.IGNORECASE | re.DOTALL)
_OF_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}
# What it puts before the cause: "Task error: File reconstruction error: CAS Client Error: ".
_LAYERS = re.compile(r"(?:(?:[\w/]+ )*error: |Rate limited: )+", re.IGNORECASE)


def is_of_xet(error: BaseException) -> bool:
    """Whether the client's Rust part raised it."""
    if isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError)):
        return False
    return type(error) is RuntimeError or (isinstance(error, OSError) and error.errno is None)


def status_of(error: BaseException) -> int | None:
    """The status that the hub, or its storage, answered with; None if there was no such answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def is_of_token(error: BaseException) -> bool:
    """Whether it is the hub that gave out no token for its storage."""
    return "-token/" in str(error)


def disk_error_of(error: BaseException) -> int | None:
    """The system's error number, if the trouble is with this machine's disk."""
    found = _ERROR_NUMBER.search(str(error))
    return int(found[1]) if found and int(found[1]) in _OF_DISK else None


def cause_in(text: str) -> str:
    """What went wrong, without the layers that it went through."""
    layers = _LAYERS.match(text)
    return text[layers.end() if layers else 0 :].replace(", domain: no-url", "")


def may_pass(error: BaseException) -> bool:
    """Whether another try may do better.

    It gives up on a network, a storage or a token that has expired. A signed link that has expired
    is refused with 403, as a token is that was never good.
    """
    status = status_of(error)
    refused = status in (400, 401, 404) or (status == 403 and is_of_token(error))
    return not refused and disk_error_of(error) is None
