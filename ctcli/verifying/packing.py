"""Errors of many modules in few bytes: names that differ in numbers share their pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ctcli.verifying.errors import LayerError

# Without leading zeros, and short enough for every reader of JSON.
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9]\d{0,8})(?=\.|$)")
_DIGITS = 4


def packed(errors: Mapping[str, LayerError]) -> list[list[Any]]:
    """For each pattern: the pattern, with `*` for numbers, and a flat list.

    The list has, for each module, its numbers and then relative, rms, largest and excess error;
    null stands for NaN and infinities.
    """
    found: dict[str, list[Any]] = {}
    for name, error in errors.items():
        values = found.setdefault(_NUMBER.sub("*", name.replace("*", "?")), [])
        values += map(int, _NUMBER.findall(name))
        values += map(_short, (error.relative, error.rms, error.largest, error.excess))
    return [[pattern, values] for pattern, values in found.items()]


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
