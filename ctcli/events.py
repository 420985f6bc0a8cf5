"""What happens during a run, for job runners: one line of JSON an event."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Literal

from ctcli.redaction import redact

EventKind = Literal[
    "started",
    "preparing",
    "compiling",
    "progress",
    "shard_fetched",
    "shard_written",
    "shard_pushed",
    "warning",
    "failed",
    "done",
]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: what it was.
        name: the file it happened to; empty where it is about the whole run.
        nbytes: bytes of that file; of a run, bytes to fetch and write, or fetched and written so
            far.
        seconds: how long it took, where it took time.
        message: what a warning or an error says, the command that started, or how far it is.
        worker: the machine of a cluster that it happened on.
    """

    kind: EventKind
    name: str = ""
    nbytes: int | None = None
    seconds: float | None = None
    message: str = ""
    worker: str = ""


Notify = Callable[[Event], None]


class EventLog:
    """Writes events to a stream as they happen, from any thread.

    A line is an object with `event`, `time` (seconds since 1970, UTC), `elapsed` (seconds since the
    log began) and those of `name`, `bytes`, `seconds`, `message` and `worker` that say
    something.

    Args:
        stream: where to; every line is flushed.
        clock: seconds since 1970.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._start = clock()

    def __call__(self, event: Event) -> None:
        """Write an event; without secrets."""
        with self._lock:
            self._stream.write(self._line(event) + "\n")
            self._stream.flush()

    def _line(self, event: Event) -> str:
        now = self._clock()
        fields = {
            "event": event.kind,
            "time": round(now, 3),
            "elapsed": round(now - self._start, 3),
            "name": redact(event.name) or None,
            "bytes": event.nbytes,
            "seconds": None if event.seconds is None else round(event.seconds, 3),
            "message": redact(event.message) or None,
            "worker": event.worker or None,
        }
        return json.dumps({key: value for key, value in fields.items() if value is not None})
