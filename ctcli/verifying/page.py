"""The result of verifying as one HTML page, which needs nothing but itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ctcli.checkpoint.sharding import natural_key
from ctcli.verifying.errors import LayerError
from ctcli.verifying.findings import Verification

PAGE_START = "<!doctype html>"
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.([0-9]+)\.")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 320, 64, 16, 16, 44
_ROLES = 8  # colours; further roles share the last
_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --back: #ffffff; --dim: #5f6368;
  --line: #d5d7db; --good: #14713d; --bad: #b3261e; --c0: #2563a8; --c1: #b4530a; --c2: #1c7c54;
  --c3: #a8326e; --c4: #6d4bc3; --c5: #7a6a00; --c6: #0b7a8a; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8ea; --back: #17181a; --dim: #a3a7ad;
  --line: #3a3d42; --good: #5fd38d; --bad: #ff8a80; --c0: #7ab3ef; --c1: #f2a65a; --c2: #66cfa0;
  --c3: #f08bbf; --c4: #b8a1f7; --c5: #d9c85a; --c6: #5cc9d9; --c7: #b0b0b0; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 60rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .verdict { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 1rem 0; }
dt { color: var(--dim); } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding-bottom: .3rem; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
tbody th { font-weight: normal; } thead th { color: var(--dim); font-weight: 600; }
svg { display: block; width: 100%; min-width: 36rem; height: auto; }
svg text { fill: var(--dim); font-size: 12px; } svg .grid { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0;
  margin: .5rem 0; color: var(--dim); font-size: .9rem; }
.legend svg { display: inline; width: 12px; min-width: 0; height: 12px; }
""" + "".join(f".r{i} {{ fill: var(--c{i}); }} " for i in range(_ROLES))


@dataclass(frozen=True)
class _Dot:
    """A module in the chart."""

    name: str
    layer: int
    role: int
    error: LayerError


def page(title: str, found: Verification) -> str:
    """The page, as UTF-8 text.

    Args:
        title: what was verified.
        found: what was found.
    """
    count = len(found.findings)
    differences = f"{count} difference{'' if count == 1 else 's'}"
    colour, verdict = ("bad", differences) if count else ("good", "sound")
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {colour}">{verdict}</p>',
        f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in found.rows())}</dl>",
        *_findings(found),
        *(_errors(found) if found.errors else ()),
    ]
    return (
        f'{PAGE_START}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>verify: {escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _findings(found: Verification) -> Iterator[str]:
    if found.findings:
        yield "<h2>Differences</h2>"
        rows = [(f.where, f.kind, f.message) for f in found.findings]
        yield _table("Every difference", ("where", "kind", "what is wrong"), rows, "text")


def _errors(found: Verification) -> Iterator[str]:
    names = sorted(found.errors, key=natural_key)
    roles = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    dots = [
        _Dot(name, _layer(name), roles.index(name.rpartition(".")[2]), found.errors[name])
        for name in names
    ]
    yield "<h2>Errors by layer</h2>"
    yield f'<div class="wide">{_chart(dots)}</div>'
    yield _legend(roles)
    rows = [
        (
            name,
            f"{error.relative:.5f}",
            f"{error.sqnr:.2f}" if error.sqnr is not None else "",
            f"{error.rms:.3g}",
            f"{error.largest:.3g}",
            f"{error.excess:.2f}",
        )
        for name, error in ((name, found.errors[name]) for name in names)
    ]
    caption = (
        "Error of every weight against the source. Relative: root mean square of the error over "
        "that of the weight. Worst group: its error over the largest that rounding leaves."
    )
    heads = ("module", "relative", "SQNR (dB)", "rms", "largest", "worst group")
    yield _table(caption, heads, rows)


def _table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = ""
) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    lines = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def _layer(name: str) -> int:
    """The number of a module's layer; -1 outside of layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


@dataclass(frozen=True)
class _Axes:
    """Where the chart puts layers and errors.

    Attributes:
        first: number of the first layer.
        last: and of the last one.
        top: the largest error that has room.
        step: distance of grid lines.
    """

    first: int
    last: int
    top: float
    step: float

    @property
    def layer_width(self) -> float:
        """Of one layer, in pixels."""
        return (_WIDTH - _LEFT - _RIGHT) / (self.last - self.first + 1)

    def x(self, layer: int) -> float:
        """The middle of a layer."""
        return _LEFT + self.layer_width * (layer - self.first + 0.5)

    def y(self, error: float) -> float:
        """The height of an error."""
        shown = min(self.top, error)  # NaN, too, is shown at the top
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - shown / self.top)


def _axes(dots: Sequence[_Dot]) -> _Axes:
    largest = max((d.error.relative for d in dots if math.isfinite(d.error.relative)), default=0.0)
    step = _step(largest or 1.0)
    layers = [dot.layer for dot in dots]
    return _Axes(min(layers), max(layers), step * max(1, math.ceil(largest / step)), step)


def _chart(dots: Sequence[_Dot]) -> str:
    """A dot for each module: relative error over the number of its layer."""
    axes = _axes(dots)
    roles = 1 + max(dot.role for dot in dots)
    parts = [*_grid(axes)]
    for dot in dots:
        # Side by side within the layer, in the order of the roles.
        x = axes.x(dot.layer) + 0.6 * axes.layer_width * ((dot.role + 0.5) / roles - 0.5)
        label = escape(f"{dot.name}: {dot.error.relative:.5f}")
        parts.append(
            f'<circle class="r{min(dot.role, _ROLES - 1)}" cx="{x:.1f}" '
            f'cy="{axes.y(dot.error.relative):.1f}" r="4"><title>{label}</title></circle>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Relative error of every '
        f'module by layer; the table below has the numbers">{"".join(parts)}</svg>'
    )


def _grid(axes: _Axes) -> Iterator[str]:
    """Lines and labels."""
    for i in range(round(axes.top / axes.step) + 1):
        y = axes.y(i * axes.step)
        yield (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{i * axes.step:.4g}</text>'
        )
    every = max(1, math.ceil((axes.last - axes.first + 1) / 20))
    for layer in range(axes.first, axes.last + 1, every):
        label = "none" if layer < 0 else layer
        y = _HEIGHT - _BOTTOM + 18
        yield f'<text x="{axes.x(layer):.1f}" y="{y}" text-anchor="middle">{label}</text>'
    middle = (_WIDTH + _LEFT - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">layer</text>'


def _step(largest: float) -> float:
    """A round distance of grid lines: one, two or five times a power of ten."""
    power = 10.0 ** math.floor(math.log10(largest / 4))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= largest / 5)


def _legend(roles: Sequence[str]) -> str:
    shown = [*roles[: _ROLES - 1], *(["others"] if len(roles) > _ROLES else roles[_ROLES - 1 :])]
    items = "".join(
        '<li><svg viewBox="0 0 12 12" aria-hidden="true">'
        f'<circle class="r{i}" cx="6" cy="6" r="5"/></svg> {escape(role)}</li>'
        for i, role in enumerate(shown)
    )
    return f'<ul class="legend">{items}</ul>'
