"""The result of verifying as one HTML page, which needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files

from ctcli.errors import grouped
from ctcli.verifying.errors import LayerError
from ctcli.verifying.findings import Verification
from ctcli.verifying.heatmap import heatmap
from ctcli.verifying.packing import packed

PAGE_START = "<!doctype html>"
_ROWS = 100  # of a table that a reader without scripts sees
_FINDINGS = 1000  # lines of differences
_HEADS = ("module", "relative", "SQNR (dB)", "rms", "largest", "worst group")
_CAPTION = (
    "Error of every weight against the source, the largest first. Relative: root mean square of "
    "the error over that of the weight. Worst group: its error over the largest that rounding "
    "leaves; above 2, a scale or zero point is wrong."
)


def page(title: str, found: Verification, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The page, as UTF-8 text.

    Args:
        title: what was verified.
        found: what was found.
        facts: labels and values of the run: version, command, date.
    """
    count = len(found.findings)
    differences = f"{count:,} difference{'' if count == 1 else 's'}"
    colour, verdict = ("bad", differences) if count else ("good", "sound")
    rows = [*found.rows(), *facts]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict {colour}">{verdict}</p>',
        f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in rows)}</dl>",
        *_findings(found),
        *(_errors(found.errors) if found.errors else ()),
    ]
    return (
        f'{PAGE_START}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>verify: {escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("ctcli.verifying").joinpath(name).read_text(encoding="utf-8")


def _findings(found: Verification) -> Iterator[str]:
    if not found.findings:
        return
    yield "<h2>Differences</h2>"
    told = grouped(f"{f.where}\0{f.kind}\0{f.message}" for f in found.findings)
    rows = [line.split("\0") for line in told[:_FINDINGS]]
    rest = f"; {len(told) - _FINDINGS:,} more are not shown" if len(told) > _FINDINGS else ""
    caption = f"Every difference; those that differ in numbers alone are one line{rest}"
    yield _table(caption, ("where", "kind", "what is wrong"), rows, "text")


def _errors(errors: Mapping[str, LayerError]) -> Iterator[str]:
    yield "<h2>Errors by layer and module</h2>"
    yield heatmap(errors)
    yield "<h2>Errors of every module</h2>"
    worst = sorted(errors.items(), key=lambda item: _rank(item[1].relative))
    rows = [(name, *_told(error)) for name, error in worst[:_ROWS]]
    yield (
        '<p class="tools"><label>Filter <input id="filter" type="search" '
        'placeholder="down_proj"></label> <span id="count"></span></p>'
    )
    yield _table(_CAPTION, _HEADS, rows, "errors")
    if len(worst) > _ROWS:
        yield f"<noscript><p>The first {_ROWS} of {len(worst):,}.</p></noscript>"
    yield '<p><button id="more" type="button" hidden>Show more</button></p>'
    data = json.dumps(packed(errors), separators=(",", ":")).replace("<", "\\u003c")
    yield f'<script type="application/json" id="data">{data}</script>'
    yield f"<script>\n{_asset('page.js')}</script>"


def _rank(relative: float) -> float:
    """NaN, which is in no order with anything, comes first."""
    return -relative if relative == relative else -float("inf")  # noqa: PLR0124


def _told(error: LayerError) -> tuple[str, ...]:
    return (
        f"{error.relative:#.4g}",
        f"{error.sqnr:.2f}" if error.sqnr is not None else "",
        f"{error.rms:.3g}",
        f"{error.largest:.3g}",
        f"{error.excess:.2f}",
    )


def _breakable(name: str) -> str:
    """A name that narrow screens break at its dots alone."""
    return escape(name).replace(".", ".<wbr>")


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    lines = "\n".join(
        f'<tr><th scope="row">{_breakable(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<p class="caption">{escape(caption)}</p><div class="wide"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )
