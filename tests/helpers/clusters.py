"""A Dask scheduler and workers as processes of their own, some of which come to harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.helpers.processes import HANG_SECONDS, environment

Process = subprocess.Popen[str]
_SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
_WORKER = "from distributed.cli.dask_worker import main; main()"
# What Dask does again and again keeps a machine busy on which many tests run.
_CALM = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
}


class Cluster:
    """A scheduler, and the workers that are added to it; all end with the block.

    Args:
        folder: for the scheduler file and logs.
        env: variables of the workers.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "scheduler.json"
        self._env = {**_CALM, **(env or {})}
        self._processes: list[Process] = []
        self._logs: list[IO[str]] = []
        self._ended = 0
        options = ("--scheduler-file", str(self.file), "--host", "127.0.0.1", "--port", "0")
        self.scheduler = self._start("scheduler", [], _SCHEDULER, *options, "--no-dashboard")
        self._wait_until(lambda: self.file.exists() and bool(self.file.read_text().strip()))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill(0)
        for log in self._logs:
            log.close()

    @contextmanager
    def further(self) -> Iterator[Cluster]:
        """Within the block, workers may be added that end with it."""
        kept = len(self._processes)
        try:
            yield self
        finally:
            self._kill(kept)
            # Until the scheduler has noticed, the next job would be given to them.
            self._wait_until(lambda: self._registered < len(self._processes))

    def _kill(self, first: int) -> None:
        ended = self._processes[first:]
        del self._processes[first:]
        for process in reversed(ended):
            for number in (signal.SIGKILL, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    process.send_signal(number)
        for process in ended:
            process.wait(timeout=HANG_SECONDS)
        self._ended += len(ended)

    @property
    def address(self) -> str:
        """The scheduler's."""
        return str(json.loads(self.file.read_text())["address"])

    @property
    def port(self) -> int:
        """The scheduler's, on this machine."""
        return int(self.address.rpartition(":")[2])

    def add(
        self,
        preparation: str = "",
        *options: str,
        within: tuple[str, ...] = (),
        scheduler: str | None = None,
    ) -> Process:
        """Start a worker; lines of Python run in it before anything else.

        Args:
            preparation: the lines.
            options: of `dask worker`.
            within: a command that runs the worker's.
            scheduler: another address by which the scheduler is reached.
        """
        given = [scheduler] if scheduler else ["--scheduler-file", str(self.file)]
        given += ["--nthreads", "1", "--no-nanny"]
        given += ["--no-dashboard", "--host", "127.0.0.1", *options]
        if "--memory-limit" not in options:
            given += ["--memory-limit", "0"]
        folder = self.folder / f"worker-{len(self._logs)}"
        folder.mkdir()
        folder.chmod(0o777)
        given += ["--local-directory", str(folder)]
        program = f"{preparation}\n{_WORKER}"
        return self._start(folder.name, [*within], program, *given)

    def wait(self) -> None:
        """Wait until all workers have been added."""
        count = self._ended + len(self._processes) - 1
        self._wait_until(lambda: self._count("Register worker addr:") >= count)

    @property
    def _registered(self) -> int:
        """How many workers the scheduler knows."""
        return self._count("Register worker addr:") - self._count("Remove worker addr:")

    def _count(self, what: str) -> int:
        return (self.folder / "scheduler.log").read_text().count(what)

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + HANG_SECONDS
        while not is_so():
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """What all processes have said so far."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def _start(self, name: str, within: list[str], program: str, *options: str) -> Process:
        log = (self.folder / f"{name}.log").open("w")
        self._logs.append(log)
        process = subprocess.Popen(
            [*within, sys.executable, "-c", program, *options],
            stdout=log,
            stderr=log,
            text=True,
            env=environment(self._env),
            cwd=self.folder,
            process_group=0,
        )
        self._processes.append(process)
        return process


def wait_stopped(process: Process) -> None:
    """Wait until a process has stopped itself by SIGSTOP."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it ended before that moment"
