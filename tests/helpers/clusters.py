"""A Dask scheduler and workers as processes of their own, some of which come to harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.helpers.processes import HANG_SECONDS, environment

Process = subprocess.Popen[str]
_SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
_WORKER = "from distributed.cli.dask_worker import main; main()"


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
        self._env = env
        self._processes: list[Process] = []
        self._logs: list[IO[str]] = []
        options = ("--scheduler-file", str(self.file), "--host", "127.0.0.1", "--port", "0")
        self.scheduler = self._start("scheduler", [], _SCHEDULER, *options, "--no-dashboard")
        self._wait_for(self.file)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in reversed(self._processes):
            for number in (signal.SIGKILL, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    process.send_signal(number)
        for process in self._processes:
            process.wait(timeout=HANG_SECONDS)
        for log in self._logs:
            log.close()

    @property
    def address(self) -> str:
        """The scheduler's."""
        return str(json.loads(self.file.read_text())["address"])

    def add(
        self, preparation: str = "", *options: str, within: tuple[str, ...] = (), name: str = ""
    ) -> Process:
        """Start a worker; lines of Python run in it before anything else.

        Args:
            preparation: the lines.
            options: of `dask worker`.
            within: a command that runs the worker's.
            name: of its log.
        """
        given = ["--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny"]
        given += ["--no-dashboard", "--host", "127.0.0.1", *options]
        if "--memory-limit" not in options:
            given += ["--memory-limit", "0"]
        folder = self.folder / f"worker-{len(self._processes)}"
        folder.mkdir()
        folder.chmod(0o777)
        given += ["--local-directory", str(folder)]
        program = f"{preparation}\n{_WORKER}"
        return self._start(name or folder.name, [*within], program, *given)

    def wait(self) -> None:
        """Wait until all workers have been added."""
        end, count = time.monotonic() + HANG_SECONDS, len(self._processes) - 1
        while self.log().count("Register worker addr:") < count:
            assert time.monotonic() < end, self.log()
            time.sleep(0.1)

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
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def _wait_for(self, path: Path) -> None:
        end = time.monotonic() + HANG_SECONDS
        while not path.exists() or not path.read_text().strip():
            assert self.scheduler.poll() is None, self.log()
            assert time.monotonic() < end, "no scheduler"
            time.sleep(0.05)


def wait_stopped(process: Process) -> None:
    """Wait until a process has stopped itself by SIGSTOP."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it ended before that moment"
