"""Every call by which a run changes the disk, made to fail or to receive a signal, one by one.

A process of its own imports `ctcli` once and forks a child for each call. The child counts the
calls that concern a folder, and lets the one whose turn it is fail, or sends itself a signal right
before it; of a write that fails, half the bytes arrive. Then the state is judged, and the same
command is run again, undisturbed.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import shutil  # looks at the functions of `os` once, when it is imported
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, cast

import typer.main

from ctcli import __main__ as process
from ctcli.cli import app
from ctcli.interrupts import Interrupts
from tests.helpers.checkpoints import file_hashes
from tests.helpers.processes import HANG_SECONDS, environment

# By path, by path or descriptor of a folder, and by descriptor.
_ON_PATHS = ("mkdir", "rename", "replace", "link", "symlink", "truncate", "chmod")
_ON_ENTRIES = ("open", "unlink", "rmdir", "remove", "scandir")
_ON_FILES = ("ftruncate", "fsync", "pwritev", "copy_file_range")
_RENAMES = ("rename", "replace", "renameat2")
WAYS = ("fail", "full", "TERM", "INT", "KILL")
# What a run finds: nothing, or what one left that was killed half-way, or once DST was there.
BEGUN = ("", "half-way", "published")
_BESIDE = "old, and a file beside it is not"
_ERRORS = {"fail": errno.EIO, "full": errno.ENOSPC}


@dataclass(frozen=True)
class Outcome:
    """How a run ended whose n-th call was disturbed.

    Attributes:
        way: how it was disturbed.
        call: the call.
        status: exit status; minus the signal that killed it.
        said: its stderr.
        state: `old`, `new`, `both` if these are the same, or something else: DST afterwards.
        again: exit status of the same command, undisturbed.
        said_again: its stderr.
        state_again: DST after that.
        left: what lies beside DST then.
    """

    way: str
    call: str
    status: int
    said: str
    state: str
    again: int
    said_again: str
    state_again: str
    left: Sequence[str]

    @property
    def problems(self) -> list[str]:
        """What of it is not as it should be."""
        found = []
        # Of two files, a kill may come after the first.
        is_between = self.way == "KILL" and self.state == _BESIDE
        if self.state not in ("old", "new", "both") and not is_between:
            found.append(f"DST is {self.state}")
        if "Traceback" in self.said or "Traceback" in self.said_again:
            found.append("a traceback")
        if self.status == 0 and self.state == "old":
            found.append("it ends well, and DST is not there")
        if "DST is as it was" in self.said and self.state == "new":
            found.append("it says that DST is as it was")
        if self.status > 0 and self.state == "new" and "complete" not in self.said:
            found.append("it does not say that DST is complete")
        # Whoever has cleared up nearly all cannot know that DST is what this command made.
        is_done = self.state in ("new", "both") and "DST exists" in self.said_again
        if self.again and not is_done:
            found.append("the same command fails")
        if self.state_again not in ("new", "both"):
            found.append("the same command does not make DST")
        if self.left and not is_done:
            found.append("something is left")
        return found

    def __str__(self) -> str:
        return (
            f"{self.way} at {self.call}: {', '.join(self.problems)} (status {self.status}, DST "
            f"{self.state}: {self.said.strip()[-400:]} | then {self.again}, DST "
            f"{self.state_again}, left {[*self.left]}: {self.said_again.strip()[-400:]})"
        )


def walk(
    folder: Path,
    command: Sequence[str | Path],
    ways: Iterable[str],
    *,
    begun: str = "",
    preparation: str = "",
    last: int | None = None,
    every: int = 1,
) -> list[Outcome]:
    """The outcomes of disturbing a command's calls.

    Args:
        folder: where `dst` is made; what it is before that, if anything, lies in `old`.
        command: the arguments, but for DST's sibling folders.
        ways: how to disturb it, of `WAYS`.
        begun: what the run finds, of `BEGUN`.
        preparation: lines of Python that are run before anything else.
        last: only so many calls before the end.
        every: only each n-th of these for a way, other ones for the next, and twice as many for
            KILL; and those that rename something.
    """
    given = [str(folder), [str(word) for word in command], [*ways], begun, last, every]
    program = f"{preparation}\nfrom tests.helpers import failing\nfailing.walk_here(*{given!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS * 6,
        env=environment(),
    )
    assert not done.returncode, done.stderr
    return [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]


def walk_here(
    folder: str, command: list[str], ways: list[str], begun: str, last: int | None, every: int
) -> None:
    """Walk, and print each outcome as a line of JSON."""
    walker = _Walker(Path(folder), command)
    walker.load()
    walker.begin(begun)
    calls = walker.count()
    first = 1 if last is None else max(1, calls - last + 1)
    for way in ways:
        step = max(1, every // 2) if way == "KILL" else every
        some = {*range(first + WAYS.index(way) % step, calls + 1, step)}
        for number in sorted(some | walker.renames(first)):
            print(json.dumps(asdict(walker.disturb(way, number))), flush=True)  # noqa: T201


class _Walker:
    def __init__(self, folder: Path, command: list[str]) -> None:
        self._folder = folder
        self._command = command
        self._old = folder / "old"
        self._single = {"dst.bin"} | ({"tokenizer.bin"} if "--tokenizer" in command else set())
        self._begun: _Disturbance | None = None
        self._files = [folder / name for name in ("dst", "dst.bin", "tokenizer.bin")]

    def load(self) -> None:
        """Run the command here, so that all is imported and compiled; and see what it makes."""
        self._restore()
        sys.argv = ["ctcli", *self._command]
        real, module = process._leave, cast(Any, process)
        module._leave = sys.exit
        with suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            process._run(Interrupts())
        module._leave = real
        # Typer takes half the time of a run to make this.
        command, module = typer.main.get_command(app), cast(Any, typer.main)
        module.get_command = lambda _: command
        self._new = self._look()

    def begin(self, begun: str) -> None:
        """Choose what the runs find from now on, of `BEGUN`."""
        if begun:
            calls = self.count()
            killed = calls * 6 // 10 if begun == "half-way" else max(self.renames(1)) + 1
            self._begun = _Disturbance("KILL", killed)
        self._restore()
        self._before = self._look()
        assert (self._new == self._before) == (begun == "published")

    def count(self) -> int:
        """How many calls the command makes."""
        self._restore()
        log = self._folder / "calls"
        log.write_bytes(b"")

        def prepare() -> None:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
            _watch(self._folder, lambda name: os.write(descriptor, f"{name}\n".encode()))

        status, said = self._child(prepare)
        assert status == 0, said
        self._calls = log.read_text().splitlines()
        return len(self._calls)

    def renames(self, first: int) -> set[int]:
        """Those calls, from one on, that give something another name."""
        numbered = enumerate(self._calls, 1)
        return {n for n, call in numbered if n >= first and call in _RENAMES}

    def disturb(self, way: str, number: int) -> Outcome:
        """Disturb a call, and see what happens."""
        self._restore()
        status, said = self._child(lambda: _watch(self._folder, _Disturbance(way, number)))
        state = self._state()
        again, said_again = self._child(lambda: None)
        left = sorted(path.name for path in self._folder.iterdir() if path.name[0] == ".")
        call = f"{number} ({self._calls[min(number, len(self._calls)) - 1]})"
        return Outcome(way, call, status, said, state, again, said_again, self._state(), left)

    def _state(self) -> str:
        found = self._look()
        if found == self._new:
            return "both" if found == self._before else "new"
        if found == self._before:
            return "old"
        beside = {name for name, _ in found.items() ^ self._before.items()}
        return _BESIDE if beside == {"tokenizer.bin"} else f"neither: {sorted(found)}"

    def _look(self) -> Mapping[str, str]:
        """Hashes of what DST holds."""
        found: dict[str, str] = {}
        for path in self._files:
            if path.is_dir():
                found |= {f"{path.name}/{n}": digest for n, digest in file_hashes(path).items()}
            elif path.exists():
                found[path.name] = str(hash(path.read_bytes()))
        return found

    def _restore(self) -> None:
        for path in self._folder.iterdir():
            if path.name[0] == "." or path in self._files:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._files:
            if path.name == "dst" and self._old.is_dir():
                shutil.copytree(self._old, path)
            elif path.name in self._single and self._old.is_file():
                shutil.copy(self._old, path)
        if begun := self._begun:
            status, said = self._child(lambda: _watch(self._folder, begun))
            assert status == -signal.SIGKILL, said

    def _child(self, prepare: Callable[[], object]) -> tuple[int, str]:
        """Run the command in a child; returns its exit status and stderr."""
        while threading.active_count() > 1:
            time.sleep(0.001)
        said = self._folder / "said"
        child = os.fork()
        if not child:
            try:
                _become(said, self._command, prepare)
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said.read_text()


def _become(said: Path, command: list[str], prepare: Callable[[], object]) -> None:
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["ctcli", *command]
    prepare()
    process.main()


class _Disturbance:
    def __init__(self, way: str, number: int) -> None:
        self._way, self._number = way, number
        self._passed = itertools.count(1)

    def __call__(self, name: str) -> None:
        if next(self._passed) != self._number:
            return
        if self._way in _ERRORS:
            raise OSError(_ERRORS[self._way], f"{name} was made to fail")
        os.kill(os.getpid(), getattr(signal, f"SIG{self._way}"))


def _watch(folder: Path, passed: Callable[[str], object]) -> None:
    """Call `passed` before every call that concerns the folder."""
    from ctcli.storage import exchange

    prefix = str(folder)

    def concerns(value: Any) -> bool:
        is_path = isinstance(value, (str, bytes, os.PathLike))
        return is_path and os.fsdecode(value).startswith(prefix)

    def watch(owner: Any, name: str, applies: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        @wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            if applies(*args, **kwargs):
                passed(name)
            return real(*args, **kwargs)

        setattr(owner, name, call)

    def on_path(path: object = ".", *_: object, dir_fd: object = None, **__: object) -> bool:
        return dir_fd is not None or isinstance(path, int) or concerns(path)

    for name in _ON_PATHS:
        watch(os, name, lambda *args, **_: any(map(concerns, args)))
    for name in _ON_ENTRIES:
        watch(os, name, on_path)
    for name in _ON_FILES:
        watch(os, name, lambda *_, **__: True)
    watch(exchange, "renameat2", lambda *_: True)
    _watch_buffered(concerns, passed)


def _watch_buffered(concerns: Callable[[Any], bool], passed: Callable[[str], object]) -> None:
    """Watch the files that are opened, and written to, through Python's buffers."""
    real = io.open
    modules: list[Any] = [io, builtins]

    class Raw(io.FileIO):
        def write(self, content: Any) -> int:
            try:
                passed("write")
            except OSError:
                super().write(memoryview(content)[: len(content) // 2])
                raise
            return super().write(content)

    @wraps(real)
    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if concerns(file):
            passed("open")
        if not concerns(file) or "r" in mode:
            return real(file, mode, *args, **kwargs)
        buffered = io.BufferedWriter(Raw(file, mode.replace("b", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    for module in modules:
        module.open = opened
