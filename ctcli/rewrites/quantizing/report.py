"""What quantizing does, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ctcli.models.familiar import unfamiliar
from ctcli.patterns import alike
from ctcli.rewrites.quantizing.selection import Selection
from ctcli.rewrites.quantizing.targets import Takers
from ctcli.schemes import words
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.parsing import UNNAMED
from ctcli.units import counted, format_bytes

_WORST = 5  # modules with the largest error that the summary shows


@dataclass(frozen=True)
class QuantizeReport:
    """What quantizing does.

    Attributes:
        selection: scheme by module, and reason by module left alone.
        bytes_before: tensor bytes of the source.
        bytes_after: tensor bytes of the output.
        as_stored: how modules were quantized before whose numbers stay, by name.
        errors: relative root mean square error by module, once it is known.
        constant: how many modules have a constant scale of their activations.
        measured: what is known of other models that were quantized so, line by line.
        loaders: which loaders take the result; None: nobody asked.
        as_floats: what modules were and are that lose their quantization, by name.
    """

    selection: Selection
    bytes_before: int
    bytes_after: int
    as_stored: Mapping[str, str]
    errors: Mapping[str, float]
    constant: int = 0
    measured: Sequence[str] = ()
    loaders: Takers | None = None
    as_floats: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def unfamiliar(self) -> Mapping[str, int]:
        """Patterns of quantized modules whose names no record knows, and how many each matches."""
        return unfamiliar(m for m in self.selection.schemes if m not in self.as_stored)

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> QuantizeReport:
        """The same with what was measured: squares of error and of weight, summed, by module."""
        errors = {}
        for module in self.selection.schemes:
            if found := measured.get(module):
                error, weight = found
                errors[module] = math.sqrt(error / weight) if weight else 0.0
        return replace(self, errors=errors)

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        new = (s for module, s in self.selection.schemes.items() if module not in self.as_stored)
        schemes: Counter[str] = Counter()
        for scheme, count in Counter(new).items():
            said = words(scheme.weights)
            schemes[said if scheme.name == UNNAMED else f"{scheme.name} ({said})"] += count
        kept = Counter(why for m, why in self.selection.kept.items() if m not in self.as_floats)
        stored, floats = Counter(self.as_stored.values()), Counter(self.as_floats.values())
        rows = [("quantized", f"{counted(n, 'module')}: {name}") for name, n in schemes.items()]
        rows += [("as stored", f"{counted(n, 'module')}: {method}") for method, n in stored.items()]
        rows += [("as floats", f"{counted(n, 'module')}: {what}") for what, n in floats.items()]
        rows += [("left alone", f"{counted(n, 'module')}: {why}") for why, n in kept.items()]
        if self.constant:
            made = counted(self.constant, "module")
            rows.append(("input scales", f"{made}: constant, 1.0; nothing was calibrated"))
        rows += [("measured loss", line) for line in self.measured]
        if strange := self.unfamiliar:
            patterns, modules = counted(len(strange), "pattern"), sum(strange.values())
            found = f"{patterns}, {counted(modules, 'module')}, quantized as linears"
            rows.append(("unfamiliar", found))
        rows += self.loaders.rows() if self.loaders else []
        share = self.bytes_after / self.bytes_before
        before, after = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        return [*rows, ("tensor bytes", f"{before} -> {after} ({100 * share:.0f} %)")]

    def items(self) -> list[str]:
        """What becomes of which modules, and those with the largest relative error."""
        names = {module: _short_name(scheme) for module, scheme in self.selection.schemes.items()}
        kept = {module: f"left alone: {why}" for module, why in self.selection.kept.items()}
        stored = {module: f"as stored: {how}" for module, how in self.as_stored.items()}
        floats = {module: f"as floats: {what}" for module, what in self.as_floats.items()}
        told = alike(names | stored | kept | floats)
        width = max((len(pattern) for pattern, _, _ in told), default=0)
        # NaN, which is in no order with anything, comes first.
        worst = sorted(self.errors.items(), key=lambda item: (not math.isnan(item[1]), -item[1]))
        lines = [f"{error:8.5f}  {module}" for module, error in worst[:_WORST]]
        modules = [f"{name:<{width}}  {n:>4,} x  {what}" for name, n, what in told]
        return [*modules, *(["largest relative weight errors (rms):", *lines] if lines else [])]

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "modules": {
                module: {
                    "scheme": scheme.name,
                    "format": scheme.format,
                    "relative_error": self.errors.get(module),
                    "as_stored": self.as_stored.get(module),
                }
                for module, scheme in self.selection.schemes.items()
            },
            "left_alone": dict(self.selection.kept),
            "as_floats": dict(self.as_floats),
            "unfamiliar": dict(self.unfamiliar),
            "constant_input_scales": self.constant,
            "measured_loss": list(self.measured),
            "loaders": self.loaders.data() if self.loaders else None,
            "tensor_bytes_before": self.bytes_before,
            "tensor_bytes_after": self.bytes_after,
        }


def _short_name(scheme: Scheme) -> str:
    """A scheme in a word or two: its name, and the size of its groups."""
    if scheme.name == UNNAMED:
        return words(scheme.weights)
    size = scheme.weights.group_size
    return f"{scheme.name} g{size}" if size else scheme.name
