"""Processes that send themselves a signal at a moment of their work, counted, not timed.

A test that watches a process and then signals it depends on being scheduled in time. Here the
process counts how often it comes past a point of the engine, and sends the signal itself: exactly
there, however busy the machine is.
"""

from __future__ import annotations

import os
import shutil  # looks at the functions of `os` once, when it is imported
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.processes import HANG_SECONDS, ctcli_after, environment

if TYPE_CHECKING:
    from ctcli.storage.journal import JobRecord
    from ctcli.storage.writer import PartialDirectory

Done = subprocess.CompletedProcess[str]
_CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "ftruncate")


@dataclass(frozen=True)
class Moment:
    """The moment at which a process comes past a point of its work for the `count`-th time.

    Attributes:
        point: a key of `POINTS`.
        count: from 1.
        by: the signal that it then sends itself.
        again: whether it goes on sending it, until it has ended.
    """

    point: str
    count: int
    by: int = signal.SIGKILL
    again: bool = False


def end_at(moment: Moment, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
    """Run `ctcli` until it has sent itself a signal and ended."""
    return subprocess.run(
        _command(moment, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
        env=environment(env),
    )


def stop_at(
    moment: Moment,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[str]:
    """Start a `ctcli` and return once it has stopped itself: `moment` is by SIGSTOP."""
    process = subprocess.Popen(
        _command(moment, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        cwd=cwd,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it ended before that moment"
    return process


def passes(point: str, *arguments: str | Path) -> int:
    """How often a `ctcli` that nothing disturbs comes past a point."""
    with tempfile.NamedTemporaryFile() as log:
        prepare = f"from tests.helpers import dying; dying.count({point!r}, {log.name!r})"
        command = ctcli_after(prepare, *arguments)
        subprocess.run(command, check=True, capture_output=True, env=environment())
        return Path(log.name).stat().st_size


def _command(moment: Moment, *arguments: str | Path) -> list[str]:
    made = f"dying.Moment({moment.point!r}, {moment.count}, {int(moment.by)}, {moment.again})"
    prepare = f"from tests.helpers import dying; dying.live_until({made})"
    return ctcli_after(prepare, *arguments)


def live_until(moment: Moment) -> None:
    """Let this process send itself a signal at a moment that is to come."""
    lock, left = threading.Lock(), moment.count

    def passed() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        if moment.again:
            threading.Thread(target=_insist, args=(moment.by,), daemon=True).start()
        # In the thread that works: in the main one, what the signal raises is raised here.
        signal.raise_signal(moment.by)

    POINTS[moment.point](passed)


def count(point: str, log: str) -> None:
    """Note each time at which this process comes past a point, as one byte of a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    POINTS[point](lambda: os.write(descriptor, b"."))


def _insist(by: int) -> None:
    while True:
        os.kill(os.getpid(), by)
        time.sleep(0.001)


Passed = Callable[[], object]


def _notes(passed: Passed) -> None:
    """The journal has a further entry: of a part of a file, or of a whole one."""
    from ctcli.storage.writer import PartialDirectory

    real = PartialDirectory.note_parts

    def one_by_one(partial: PartialDirectory, parts: Sequence[JobRecord]) -> None:
        for part in parts:
            real(partial, [part])
            passed()

    setattr(PartialDirectory, real.__name__, one_by_one)
    _call_after(PartialDirectory, "note_file", passed)


def _files(passed: Passed) -> None:
    """The journal calls a further file complete."""
    from ctcli.storage.writer import PartialDirectory

    _call_after(PartialDirectory, "note_file", passed)


def _published(passed: Passed) -> None:
    """DST is there, and nothing is cleared up."""
    from ctcli.storage.writer import PartialDirectory

    _call_after(PartialDirectory, "publish", passed)


def _jobs(passed: Passed) -> None:
    """A further job is done, and not noted; on any thread."""
    from ctcli.engine import run

    _call_after(run, "perform", passed)


def _looks(passed: Passed) -> None:
    """A further job is done that writes nothing; on any thread."""
    from ctcli.verifying import scanning

    _call_after(scanning, "compute", passed)


def _changes(passed: Passed) -> None:
    """The next change of a file or a folder is about to be made, or half made if it is a write."""
    assert shutil.rmtree.avoids_symlink_attacks
    for name in _CHANGES:
        _call_before(name, passed)
    _write_in_halves(passed)
    _copy_in_halves(passed)


# Where a process can be ended.
POINTS: Mapping[str, Callable[[Passed], None]] = {
    "note": _notes,
    "file": _files,
    "job": _jobs,
    "look": _looks,
    "published": _published,
    "change": _changes,
}


def _call_after(owner: Any, name: str, passed: Passed) -> None:
    real = getattr(owner, name)

    @wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        passed()
        return result

    setattr(owner, name, call)


def _call_before(name: str, passed: Passed) -> None:
    real = getattr(os, name)

    @wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        passed()
        return real(*args, **kwargs)

    setattr(os, name, call)


def _write_in_halves(passed: Passed) -> None:
    real = os.pwritev

    def pwritev(target: int, pieces: Sequence[memoryview], offset: int, /) -> int:
        content = b"".join(pieces)
        written = real(target, [content[: len(content) // 2]], offset)
        passed()
        return written + real(target, [content[written:]], offset + written)

    module: Any = os
    module.pwritev = pwritev


def _copy_in_halves(passed: Passed) -> None:
    real = os.copy_file_range

    def copy(source: int, target: int, nbytes: int, start: int, offset: int) -> int:
        copied = real(source, target, nbytes // 2, start, offset) if nbytes > 1 else 0
        passed()
        return copied + real(source, target, nbytes - copied, start + copied, offset + copied)

    module: Any = os
    module.copy_file_range = copy
