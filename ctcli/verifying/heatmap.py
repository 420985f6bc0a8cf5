"""Errors as a map: a row for each kind of module, a column for each layer, darker is worse."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape

from ctcli.checkpoint.sharding import natural_key
from ctcli.verifying.errors import LayerError

_LAYER = re.compile(r"(?P<before>.*?)\b(?:layers|h|blocks)\.(?P<number>[0-9]+)\.(?P<role>.*)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SHADES = 8
_ROW, _LABELS, _TOP, _LEAST, _WIDTH = 18, 190, 4, 7, 700  # pixels; _LEAST of a layer's column


@dataclass
class _Cell:
    """Modules of a kind in a layer: of experts, many."""

    worst: float = 0.0
    name: str = ""
    count: int = 0

    def add(self, name: str, relative: float) -> None:
        self.count += 1
        if not self.name or not relative <= self.worst:  # NaN is the worst of all
            self.worst, self.name = relative, name


@dataclass
class _Map:
    cells: dict[tuple[str, int], _Cell] = field(default_factory=dict)

    @property
    def roles(self) -> list[str]:
        return sorted(dict.fromkeys(role for role, _ in self.cells), key=natural_key)

    @property
    def layers(self) -> list[int]:
        return sorted({layer for _, layer in self.cells})


def heatmap(errors: Mapping[str, LayerError]) -> str:
    """The map as HTML, with a legend; it can be scrolled where there is no room.

    Experts of a layer share a cell, which shows the worst of them. Modules outside of layers stand
    before the first.
    """
    found = _Map()
    for name, error in errors.items():
        match = _LAYER.fullmatch(name)
        role = _NUMBER.sub("*", match["role"] if match else name)
        cell = found.cells.setdefault((role, int(match["number"]) if match else -1), _Cell())
        cell.add(name, error.relative)
    finite = [c.worst for c in found.cells.values() if math.isfinite(c.worst)]
    least, most = min(finite, default=0.0), max(finite, default=0.0)
    parts = "".join([*_labels(found), *_cells(found, least, most)])
    width, height = _LABELS + _column(found) * len(found.layers) + 8, _height(found)
    return (
        f'<div class="wide"><svg class="map" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img" aria-label="Relative error by layer and '
        f'module; the table below has the numbers">{parts}</svg></div>{_legend(least, most)}'
    )


def _column(found: _Map) -> float:
    return max(_LEAST, min(28.0, _WIDTH / max(1, len(found.layers))))


def _height(found: _Map) -> int:
    return _TOP + _ROW * len(found.roles) + 22


def _labels(found: _Map) -> Iterator[str]:
    for row, role in enumerate(found.roles):
        shown = role if len(role) <= 30 else f"...{role[-28:]}"
        y = _TOP + row * _ROW + 13
        yield f'<text x="{_LABELS - 6}" y="{y}" text-anchor="end">{escape(shown)}</text>'
    layers, column = found.layers, _column(found)
    every = max(1, math.ceil(26 / column))
    for place, layer in enumerate(layers):
        if place % every == 0:
            x = _LABELS + (place + 0.5) * column
            label = "none" if layer < 0 else str(layer)
            y = _height(found) - 6
            yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{label}</text>'


def _cells(found: _Map, least: float, most: float) -> Iterator[str]:
    rows = {role: row for row, role in enumerate(found.roles)}
    places = {layer: place for place, layer in enumerate(found.layers)}
    column = _column(found)
    for (role, layer), cell in found.cells.items():
        x, y = _LABELS + places[layer] * column, _TOP + rows[role] * _ROW
        many = f" (the worst of {cell.count:,})" if cell.count > 1 else ""
        told = escape(f"{cell.name}: {cell.worst:.5f}{many}")
        yield (
            f'<rect class="s{_shade(cell.worst, least, most)}" x="{x:.1f}" y="{y}" '
            f'width="{column - 1:.1f}" height="{_ROW - 1}"><title>{told}</title></rect>'
        )


def _shade(worst: float, least: float, most: float) -> str:
    if not math.isfinite(worst):
        return "x"
    share = (worst - least) / (most - least) if most > least else 0.0
    return str(min(_SHADES - 1, int(share * _SHADES)))


def _legend(least: float, most: float) -> str:
    boxes = "".join(
        f'<svg viewBox="0 0 12 12" aria-hidden="true"><rect class="s{i}" width="12" height="12"/>'
        "</svg>"
        for i in range(_SHADES)
    )
    return f'<p class="legend">{least:.4g} {boxes} {most:.4g}</p>'
