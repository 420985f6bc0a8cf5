"""What people see: results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import json
import math
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from ctcli.errors import CtcliError, Stopped, os_errors_of
from ctcli.events import Event, EventLog
from ctcli.units import Advance, format_bytes, format_seconds

_SHOWN = 20  # lines of a list or of problems before it is cut short
_LONGEST = 600  # characters of a line
_NARROWEST = 30  # columns in which the last cell of a line is worth wrapping
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Section:
    """Lines under a heading.

    Attributes:
        heading: one line.
        lines: cells, aligned by column; the last one of a line may be long.
        whole: show them all, however many there are.
    """

    heading: str
    lines: Sequence[tuple[str, ...]]
    whole: bool = False


@dataclass(frozen=True)
class Result:
    """What a command has to say when it is done.

    Attributes:
        title: one line.
        rows: label and value, for people.
        items: further lines, for people; a long list is cut.
        data: the same in full, for programs.
        sections: more lines for people, each list under its heading.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    items: Sequence[str]
    data: Mapping[str, Any]
    sections: Sequence[Section] = ()


class Report(Protocol):
    """What a rewrite says of itself."""

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> Report:
        """The same with what its nodes measured, by module."""

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""

    def items(self) -> list[str]:
        """Further lines, for people."""

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""


class Terminal:
    """The two output streams of a command."""

    def __init__(self, quiet: bool = False, as_json: bool = False, logs: bool = False) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._log = EventLog(sys.stderr) if logs else None
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    def notify(self, event: Event) -> None:
        """Log an event, if events are logged; from any thread. People are told what takes long."""
        if self._log:
            self._log(event)
        elif event.kind == "compiling" and not self._quiet:
            self._err.print(event.message, markup=False)

    @contextmanager
    def logging_errors(self) -> Iterator[None]:
        """Log how the block ends early, if events are logged, and end with that exit status."""
        try:
            yield
        except (CtcliError, Stopped) as error:
            if not self._log:
                raise
            self.notify(Event("failed", message=str(error)))
            raise SystemExit(1 if isinstance(error, CtcliError) else error.exit_code) from error

    def show(self, result: Result) -> None:
        """Print a result: JSON if that was asked for, else lines for people unless quiet.

        Raises:
            CtcliError: stdout cannot be written.
        """
        with os_errors_of("stdout", "writing"):
            self._show(result)
            if sys.stdout:
                sys.stdout.flush()

    def _show(self, result: Result) -> None:
        if self._as_json:
            sys.stdout.write(json.dumps(_strict(result.data), indent=2, allow_nan=False) + "\n")
            return
        if self._quiet:
            return
        self._out.print(Text(_printable(result.title), style="bold"))
        self._print_lines(result.rows)
        self._print_lines([(item,) for item in result.items[:_SHOWN]])
        self._print_rest(len(result.items))
        for section in result.sections:
            self._out.print(Text(_printable(section.heading), style="bold"))
            self._print_lines(section.lines if section.whole else section.lines[:_SHOWN])
            self._print_rest(0 if section.whole else len(section.lines))

    def _print_lines(self, lines: Sequence[tuple[str, ...]]) -> None:
        """Print cells in columns, the first one of several dim."""
        shown = [[_printable(cell) for cell in cells] for cells in lines]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        for cells in shown:
            *before, last = cells
            start = "".join(f"{c:<{width}}  " for c, width in zip(before, widths, strict=False))
            hang = len(start) or 2
            for i, piece in enumerate(_wrapped(self._out, last, 2 + hang)):
                margin = " " * hang if i else start
                line = Text("  ").append(margin[: widths[0]], "dim" if before else "default")
                line.append(margin[widths[0] :]).append(piece).rstrip()
                self._out.print(line)

    def _print_rest(self, count: int) -> None:
        if count > _SHOWN:
            self._out.print(f"  … and {count - _SHOWN} more: --json lists them all")

    def warn(self, warning: str) -> None:
        """Print a warning."""
        self.notify(Event("warning", message=warning))
        if not (self._quiet or self._log):
            self._say("warning: ", "yellow", warning)

    def fail(self, error: CtcliError) -> None:
        """Print an expected error: its problems, then what to do next."""
        for problem in error.problems[:_SHOWN]:
            self._say("error: ", "bold red", problem)
        if len(error.problems) > _SHOWN:
            self._err.print(f"… and {len(error.problems) - _SHOWN} more problems like these")
        self._say("next: ", "bold", error.hint)

    def _say(self, label: str, style: str, text: str) -> None:
        for i, piece in enumerate(_wrapped(self._err, _printable(text), len(label))):
            start = " " * len(label) if i else label
            self._err.print(Text(start, style=style).append(piece, "default"))

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Show how many of `total` bytes are done: a bar on a terminal, else lines."""
        if self._quiet or self._log:
            yield lambda nbytes: None  # noqa: ARG005
        elif self._err.is_terminal:
            with self._bar(title, total) as advance:
                yield advance
        else:
            yield _Lines(self._err, title, total)

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Advance]:
        from rich import progress  # not needed, and not free, without a terminal

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(compact=True),
        )
        with progress.Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda nbytes: bar.advance(task, nbytes)


class _Lines:
    """Progress where there is no terminal: a plain line every few seconds."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._lock = threading.Lock()
        self._done = 0
        self._start = self._printed = time.monotonic()

    def __call__(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._printed >= _SECONDS_BETWEEN_LINES:
                self._printed = now
                self._console.print(self._line(now - self._start), markup=False)

    def _line(self, seconds: float) -> str:
        rate = max(self._done, 1) / seconds
        left = (self._total - self._done) / rate
        return (
            f"{self._title}: {100 * self._done // max(self._total, 1)} %, "
            f"{format_bytes(self._done)} of {format_bytes(self._total)}, "
            f"{format_bytes(rate)}/s, {format_seconds(left)} left"
        )


def _wrapped(console: Console, text: str, indent: int) -> list[str]:
    """Text in pieces that a terminal has room for; elsewhere, lines stay whole."""
    room = console.width - indent
    if not console.is_terminal or room < _NARROWEST:
        return [text]
    pieces = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return pieces or [""]


def _strict(value: Any) -> Any:
    """The same for JSON, which has neither NaN nor infinities: null stands for them."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _printable(text: str) -> str:
    """Names come from files: show control characters instead of obeying them, and no novels."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    if len(shown) <= _LONGEST:
        return shown
    return f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 2 :]}"
