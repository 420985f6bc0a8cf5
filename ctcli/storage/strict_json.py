"""JSON as file formats mean it: a key that appears twice is an error, not a silent choice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

Pairs = list[tuple[str, Any]]


def parse_json(content: bytes, make: Callable[[Pairs], Any] | None = None) -> Any:
    """Parse UTF-8 JSON.

    Args:
        content: the text.
        make: makes a value of an object's keys and values, instead of a table; it has to look for
            keys that appear twice by `unique`.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or an object with a key twice.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=make or unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def unique(pairs: Pairs) -> dict[str, Any]:
    """A table of an object's keys and values.

    Raises:
        ValueError: a key appears twice.
    """
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return entries
