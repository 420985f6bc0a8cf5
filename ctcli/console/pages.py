"""Help and pages of the guide, as wide as they can be read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ctcli.console.commands import fitted, refitted

_WIDEST = 100  # columns
_TERM = 30  # columns that a term may take before its words begin on the next line
_NARROW = 70  # columns below which words stand under their terms


@dataclass(frozen=True)
class Block:
    """A part of a help text.

    Attributes:
        heading: one line; empty: there is none.
        lines: terms and what they are; a term alone is text.
        are_commands: the terms are commands to copy.
    """

    heading: str
    lines: Sequence[tuple[str, str]]
    are_commands: bool = False


def help_text(blocks: Sequence[Block]) -> str:
    """A help text as stdout shows it, without the last end of line."""
    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as capture:
        _print(console, blocks)
    return capture.get().rstrip("\n")


def _print(console: Console, blocks: Sequence[Block]) -> None:
    width = min(console.width, _WIDEST)
    for i, block in enumerate(blocks):
        if i:
            console.print()
        if block.heading:
            console.print(Text(block.heading, style="bold"))
        if block.are_commands:
            for line in fitted(block.lines, width - 2):
                console.print(Text(f"  {line}"))
            continue
        terms = [len(term) for term, words in block.lines if words]
        column = max((n for n in terms if n <= _TERM), default=_TERM)
        for term, words in block.lines:
            for text in _lines(term, words, column, width, "  " if block.heading else ""):
                console.print(text)


def show_page(text: str) -> None:
    """Print a page in Markdown on stdout."""
    from rich.markdown import CodeBlock, Markdown, TableElement  # not free, and for pages only

    class Table(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                columns = getattr(table, "columns", ())
                cells = [[str(each) for each in (c.header, *c.cells)] for c in columns]
                widths = _widths(cells, options.max_width - 2 * len(cells) - 2)
                for column, width in zip(columns, widths, strict=True):
                    column.overflow = "fold"  # rather than leave out what does not fit
                    column.width = width
                yield table

    class Code(CodeBlock):
        def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
            for line in str(self.text).rstrip().split("\n"):  # whole, however long, to be copied
                yield Text(f" {line}".rstrip(), no_wrap=True, overflow="ignore")

    class Page(Markdown):
        elements: ClassVar = {
            **Markdown.elements,
            "table_open": Table,
            "fence": Code,
            "code_block": Code,
        }

    console = Console(highlight=False)
    if not console.encoding.lower().startswith("utf"):  # which has neither bullets nor lines
        console.file.write(text)
        return
    width = min(console.width, _WIDEST)
    text = refitted(text, width - 2)  # a column stays free on either side of them
    console.print(Page(text, hyperlinks=False), width=width, crop=False)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int | None]:
    """Widths in which no word breaks, if there is room for them; None: as rich has it."""
    words = [[len(word) for cell in cells for word in cell.split()] for cells in columns]
    needed = [max(lengths, default=0) for lengths in words]
    wanted = [max(map(len, cells)) for cells in columns]
    left = room - sum(needed)
    if left < 0 or sum(wanted) <= room:
        return [None] * len(columns)
    lacking = sum(wanted) - sum(needed)
    return [
        least + left * (most - least) // lacking for least, most in zip(needed, wanted, strict=True)
    ]


def _lines(term: str, words: str, column: int, width: int, indent: str) -> Iterator[Text]:
    if not words:
        for line in _wrapped(term, width - len(indent)) if not indent else [term]:
            yield Text(indent + line)
        return
    if width < _NARROW or len(term) > column:
        yield Text(indent).append(term, "cyan")
        hang = len(indent) + (4 if width < _NARROW else column + 2)
        pieces = _wrapped(words, width - hang)
    else:
        hang = len(indent) + column + 2
        first, *pieces = _wrapped(words, width - hang)
        yield Text(indent).append(f"{term:<{column}}  ", "cyan").append(first)
    for piece in pieces:
        yield Text(" " * hang + piece)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
