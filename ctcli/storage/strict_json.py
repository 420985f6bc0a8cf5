"""JSON as file formats mean it: a key that appears twice is an error, not a silent choice."""

from __future__ import annotations

import json
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
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key {key!r} appears twice")
        entries[key] = value
    return entries
