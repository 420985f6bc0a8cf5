"""The quantized weights of a checkpoint: how they are stored, alike ones together."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from ctcli.checkpoint.value import Checkpoint
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import Reading
from ctcli.schemes import words

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class StoredWeights:
    """Weights whose names differ in numbers alone and that are stored alike.

    Attributes:
        pattern: their modules' name, with `*` for numbers.
        count: how many there are.
        method: how they are stored.
        bits: that a weight takes, with its scales.
        scheme: the compressed-tensors scheme that holds the same numbers, in words; None: none.
    """

    pattern: str
    count: int
    method: str
    bits: float
    scheme: str | None


def stored_weights(checkpoint: Checkpoint, reading: Reading) -> tuple[StoredWeights, ...]:
    """The quantized weights, in the order of their names."""
    alike: dict[tuple[str, str], list[Coded]] = defaultdict(list)
    for coded in reading.coded.values():
        alike[_NUMBER.sub("*", coded.module), coded.method].append(coded)
    return tuple(
        StoredWeights(pattern, len(found), method, _bits(checkpoint, found), _scheme(found[0]))
        for (pattern, method), found in sorted(alike.items())
    )


def _bits(checkpoint: Checkpoint, found: list[Coded]) -> float:
    specs = checkpoint.specs
    stored = sum(specs[name].bits for coded in found for name in coded.parts)
    elements = sum(math.prod(coded.weight.spec.shape) for coded in found)
    return round(stored / max(1, elements), 3)


def _scheme(coded: Coded) -> str | None:
    scheme = coded.leaves[0].scheme
    return words(scheme.weights) if scheme else None
