"""JSON as file formats mean it: a key that appears twice is an error, not a silent choice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parse_json(content: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or an object with a key twice.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return entries
