"""What people see: results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from ctcli.console.progress import Meter, logging, showing
from ctcli.console.results import Result
from ctcli.errors import CtcliError, Stopped, grouped, os_errors_of
from ctcli.events import Event, EventLog
from ctcli.units import Advance

_SHOWN = 20  # lines of a list or of problems before it is cut short
_LONGEST = 600  # characters of a line
_NARROWEST = 30  # columns in which the last cell of a line is worth wrapping


class _Output(Console):
    """Stdout, of which rich would end the process where nobody reads it."""

    def on_broken_pipe(self) -> None:
        """See `Console`."""
        raise BrokenPipeError


class Terminal:
    """The two output streams of a command.

    Attributes:
        has_compiled: whether compiling kernels took a noticeable part of the time.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, logs: bool = False) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._log = EventLog(sys.stderr) if logs else None
        self._meter: Meter | None = None
        self.has_compiled = False
        self._out = _Output(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    def notify(self, event: Event) -> None:
        """Log an event, if events are logged; from any thread. People are told what takes long."""
        self.has_compiled |= event.kind == "compiling"
        if self._meter:
            self._meter.notify(event)
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
            raise SystemExit(error.exit_code) from error

    def show(self, result: Result) -> None:
        """Print a result: JSON if that was asked for, else lines for people unless quiet.

        Raises:
            CtcliError: stdout cannot be written.
        """
        # A reader such as `head`, which has seen enough, does not change the exit status.
        with os_errors_of("stdout", "writing"), suppress(BrokenPipeError):
            self._show(result)
            if sys.stdout:
                sys.stdout.flush()

    def _show(self, result: Result) -> None:
        if self._as_json:
            sys.stdout.write(json.dumps(_strict(result.data), indent=2, allow_nan=False) + "\n")
            return
        if self._quiet:
            for section in result.sections:
                self._print_lines(section.lines if section.is_essential else [])
            return
        self._out.print(Text(_printable(result.title), style="bold"))
        self._print_lines(result.rows)
        self._print_lines([(item,) for item in result.items[:_SHOWN]])
        self._print_rest(len(result.items))
        for section in result.sections:
            for piece in _wrapped(self._out, _printable(section.heading), 0):
                self._out.print(Text(piece, style="bold"))
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
            if self._is_narrow(hang, last) and before:
                # There is no room beside the other cells: the last one goes below them.
                self._print_cells(start.rstrip(), "", widths[0], True)
                start, hang = "    ", 4
            for i, piece in enumerate(_wrapped(self._out, last, 2 + hang)):
                self._print_cells(" " * hang if i else start, piece, widths[0], bool(before))

    def _is_narrow(self, hang: int, last: str) -> bool:
        room = self._out.width - 2 - hang
        return self._out.is_terminal and len(last) > room and room < _NARROWEST

    def _print_cells(self, start: str, last: str, first: int, is_dim: bool) -> None:
        """Print a line of cells, the first of which takes so many columns."""
        line = Text("  ").append(start[:first], "dim" if is_dim else "default")
        line.append(start[first:]).append(last).rstrip()
        self._out.print(line)

    def _print_rest(self, count: int) -> None:
        if count > _SHOWN:
            self._out.print(f"  ... and {count - _SHOWN} more: --json lists them all")

    def warn(self, warning: str) -> None:
        """Print a warning."""
        self.notify(Event("warning", message=warning))
        if not (self._quiet or self._log):
            self._say("warning: ", "yellow", warning)

    def fail(self, error: CtcliError) -> None:
        """Print an expected error: its problems, then what to do next."""
        problems = grouped(error.problems)
        for problem in problems[:_SHOWN]:
            self._say("error: ", "bold red", problem)
        if len(problems) > _SHOWN:
            self._err.print(f"... and {len(problems) - _SHOWN} more problems like these")
        self._say("next: ", "bold", error.hint)

    def _say(self, label: str, style: str, text: str) -> None:
        for i, piece in enumerate(_wrapped(self._err, _printable(text), len(label))):
            start = " " * len(label) if i else label
            self._err.print(Text(start, style=style).append(piece, "default"))

    @contextmanager
    def progress(self, title: str, total: int, shards: int = 0) -> Iterator[Advance]:
        """Show how many of `total` bytes are done: a bar on a terminal, else lines.

        Args:
            title: what is done.
            total: bytes.
            shards: to be completed, of which `notify` is told; 0: they are not counted.
        """
        self._meter = meter = Meter(title, total, shards)
        if self._log:
            with logging(self._log, meter) as advance:
                yield advance
        elif self._quiet:
            yield meter
        else:
            with showing(self._err, meter) as advance:
                yield advance


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
    return f"{shown[: _LONGEST // 2]} ... {shown[-_LONGEST // 2 :]}"
