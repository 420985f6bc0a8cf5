"""How far a run has come: a bar on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from ctcli.events import Event, Notify
from ctcli.units import Advance, format_bytes, format_seconds

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_EVENTS = 10.0
_WINDOW = 10.0  # seconds that the rate is taken over
_BAR = 24  # columns
_ROOM_FOR_BAR = 100  # columns of a terminal that has room for it


class Meter:
    """Counts bytes and shards, from any thread.

    Args:
        title: what is done.
        total: bytes to be done.
        shards: to be completed; 0: they are not counted.
        clock: seconds.
    """

    def __init__(
        self, title: str, total: int, shards: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.total, self.shards, self.done = title, total, shards, 0
        self._clock, self._lock = clock, threading.Lock()
        self._complete = self._pushed = 0
        self._aside = ""
        self._marks = deque([(clock(), 0)])

    def __call__(self, nbytes: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            if nbytes:
                self._aside = ""
            self.done += nbytes
            now = self._clock()
            if now - self._marks[-1][0] >= _WINDOW / 20:
                self._marks.append((now, self.done))
            while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW:
                self._marks.popleft()

    def notify(self, event: Event) -> None:
        """Count the shards that events tell of, and note what takes time before bytes move."""
        self._complete += event.kind == "shard_written"
        self._pushed += event.kind == "shard_pushed"
        if event.kind in ("compiling", "preparing"):
            self._aside = event.message if event.kind == "preparing" else event.kind

    @property
    def phase(self) -> str:
        """What is done, and the part of it that takes the time."""
        if self._aside:
            return f"{self.title} ({self._aside})"
        if self._pushed and self._complete >= self.shards:
            return f"{self.title} (uploading)"
        return self.title

    def words(self, room: int = 1000) -> str:
        """Share, shards, rate of the last seconds, and the time that is left at this rate.

        Args:
            room: columns; where there are too few, the rate is left out.
        """
        now, (start, before) = self._clock(), self._marks[0]
        rate = (self.done - before) / max(now - start, 1e-3)
        parts = [f"{100 * self.done // max(self.total, 1)} % of {format_bytes(self.total)}"]
        if self.shards:
            done = min(self._complete, self.shards)
            parts.append(f"{done} of {self.shards} shard{'' if self.shards == 1 else 's'}")
        if self._aside or now - self._marks[-1][0] > _WINDOW:
            return ", ".join(parts)  # nothing moves: a rate would say when it did
        parts.append(f"{format_bytes(rate)}/s")
        if rate > 0:
            parts.append(f"{format_seconds((self.total - self.done) / rate)} left")
            if len(", ".join(parts)) > room:
                del parts[-2]
        return ", ".join(parts)


@contextmanager
def showing(console: Console, meter: Meter) -> Iterator[Advance]:
    """Show a meter while the block runs."""
    if console.is_terminal:
        with _bar(console, meter) as advance:
            yield advance
    else:
        yield _Lines(console, meter)


@contextmanager
def logging(notify: Notify, meter: Meter) -> Iterator[Advance]:
    """Tell of a meter every few seconds while the block runs, whether or not it moves."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_SECONDS_BETWEEN_EVENTS):
            notify(Event("progress", nbytes=meter.done, message=meter.words()))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield meter
    finally:
        ended.set()
        teller.join()


@contextmanager
def _bar(console: Console, meter: Meter) -> Iterator[Advance]:
    from rich import progress  # not needed, and not free, without a terminal

    class Words(progress.ProgressColumn):
        """What the meter says now, though nothing may have moved for a while."""

        def render(self, _task: progress.Task) -> Text:
            """See `ProgressColumn`."""
            return Text(f"{meter.phase}  {meter.words(console.width - len(meter.phase) - 2)}")

    columns: list[progress.ProgressColumn] = [Words()]
    if console.width >= _ROOM_FOR_BAR:
        columns.insert(0, progress.BarColumn(_BAR))
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(meter.title, total=meter.total)

        def advance(nbytes: int) -> None:
            meter(nbytes)
            bar.update(task, advance=nbytes)

        yield advance


class _Lines:
    """A plain line every few seconds."""

    def __init__(self, console: Console, meter: Meter) -> None:
        self._console, self._meter = console, meter
        self._lock, self._printed = threading.Lock(), time.monotonic()

    def __call__(self, nbytes: int) -> None:
        self._meter(nbytes)
        with self._lock:
            if (now := time.monotonic()) - self._printed < _SECONDS_BETWEEN_LINES:
                return
            self._printed = now
        self._console.print(f"{self._meter.phase}: {self._meter.words()}", markup=False)
