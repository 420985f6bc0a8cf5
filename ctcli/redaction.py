"""Text that people and logs may see: without tokens, and without signatures of URLs."""

from __future__ import annotations

import os
import re

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 8  # shorter values of these variables are no tokens, and may be words
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",]+")
# What stands before the host, and what comes behind the path: storage signs its URLs there.
_USER = re.compile(r"(\bhttps?://)[^/\s@]+@")
_QUERY = re.compile(r"(\bhttps?://[^\s?'\"<>]+)\?[^\s'\"<>]*")


def redact(text: str, *secrets: str | None) -> str:
    """`text` with its secrets blacked out.

    Args:
        text: anything, such as what a server said.
        secrets: tokens in use that the environment does not tell.
    """
    known = {*secrets, *(os.environ.get(name) for name in _VARIABLES)}
    for secret in sorted((s for s in known if s and len(s) >= _SHORTEST), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _TOKEN.sub("hf_***", text)
    text = _BEARER.sub(r"\1 ***", text)
    text = _USER.sub(r"\1***@", text)
    return _QUERY.sub(r"\1?***", text)
