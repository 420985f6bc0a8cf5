"""Bytes and seconds: as people write and read them, and as progress is told."""

from __future__ import annotations

import re
from collections.abc import Callable

# Progress callback: so many more bytes are done. May raise to end the work.
Advance = Callable[[int], None]

_UNITS = {
    unit: factor**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, factor in ((f"{prefix}", 1000), (f"{prefix}B", 1000), (f"{prefix}IB", 1024))
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Z]*)")


def parse_bytes(text: str) -> int:
    """Parse `5GB` (10^9), `5GiB` (2^30) or a plain number of bytes.

    Raises:
        ValueError: no positive size.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    factor = {"": 1, "B": 1, **_UNITS}.get(match[2]) if match else None
    nbytes = float(match[1]) * factor if match and factor else 0.0
    if not 1 <= nbytes < 2**63:
        raise ValueError(f"{text!r} is no size: give a number with KB, MB, GB, TB, MiB or GiB.")
    return int(nbytes)


def format_bytes(nbytes: float) -> str:
    """Format a byte count in decimal units, three digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def format_seconds(seconds: float) -> str:
    """Format a duration: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """How many there are: `1 module`, `2,048 modules`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
