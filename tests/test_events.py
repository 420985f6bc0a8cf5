"""The log for job runners."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest

from ctcli.events import Event, EventLog


def test_a_line_an_event_with_time_and_what_it_has_to_say() -> None:
    stream, times = StringIO(), iter([1000.0, 1000.25, 1002.0, 1003.5])
    log = EventLog(stream, lambda: next(times))
    log(Event("started", nbytes=30, message="ctcli quantize org/name DST"))
    log(Event("shard_written", "model-1.safetensors", 0, 1.23456))
    log(Event("warning", message="two\nlines, größe"))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {
            "event": "started",
            "time": 1000.25,
            "elapsed": 0.25,
            "bytes": 30,
            "message": "ctcli quantize org/name DST",
        },
        {
            "event": "shard_written",
            "time": 1002.0,
            "elapsed": 2.0,
            "name": "model-1.safetensors",
            "bytes": 0,
            "seconds": 1.235,
        },
        {"event": "warning", "time": 1003.5, "elapsed": 3.5, "message": "two\nlines, größe"},
    ]


class Slow(StringIO):
    """Writes in pieces, so that threads would mix their lines."""

    def write(self, text: str) -> int:
        return sum(super(Slow, self).write(char) for char in text)


def test_threads_do_not_mix_their_lines_and_each_is_flushed() -> None:
    flushed: list[int] = []
    stream = Slow()
    stream.flush = lambda: flushed.append(1)  # type: ignore[method-assign]
    log = EventLog(stream)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: log(Event("shard_pushed", f"{n}.safetensors", n)), range(400)))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted(line["bytes"] for line in lines) == [*range(400)]
    assert len(flushed) == 400


def test_no_token_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "Lm4" * 11 + "T"
    monkeypatch.setenv("HF_TOKEN", "of-no-known-shape")
    stream = StringIO()
    EventLog(stream)(Event("failed", f"{token}.bin", message=f"{token} of-no-known-shape"))
    assert token not in stream.getvalue()
    assert "of-no-known-shape" not in stream.getvalue()
