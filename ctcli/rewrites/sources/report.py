"""What became of quantized weights, for the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctcli.formats.sources.coded import Coded
from ctcli.units import format_bytes

# What rounds where not all numbers stay the same, by what happens to them.
_ROUNDED = {
    "dequantized": "each weight is rounded once, from float32",
    "converted": "but for global scales, which are reciprocals, rounded to float32",
}


@dataclass(frozen=True)
class SourceReport:
    """What a rewrite of quantized weights does.

    Attributes:
        verb: what happens to them: `dequantized`.
        weights: what they were and are, by name of the dense tensor.
        is_exact: whether all numbers stay the same.
        bytes_before: tensor bytes of the source.
        bytes_after: tensor bytes of the output.
    """

    verb: str
    weights: Mapping[str, str]
    is_exact: bool
    bytes_before: int
    bytes_after: int

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> SourceReport:  # noqa: ARG002
        """Itself: nothing was measured."""
        return self

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        counts = Counter(self.weights.values())
        rows = [(self.verb, f"{n} weights: {what}") for what, n in counts.items()]
        exact = "yes" if self.is_exact else _ROUNDED[self.verb]
        before, after = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        return [*rows, ("exact", exact), ("tensor bytes", f"{before} -> {after}")]

    def items(self) -> list[str]:
        """Nothing more."""
        return []

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "weights": dict(self.weights),
            "exact": self.is_exact,
            "tensor_bytes_before": self.bytes_before,
            "tensor_bytes_after": self.bytes_after,
        }


def methods(coded: Mapping[str, Coded]) -> dict[str, str]:
    """How weights are stored, by name."""
    return {name: each.method for name, each in coded.items()}
