"""What all tests share: the command as a real process, and the bundled checkpoint."""

from __future__ import annotations

import gc
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from ctcli import __main__ as process
from ctcli.console import progress
from ctcli.interrupts import Interrupts
from tests.helpers import processes

if TYPE_CHECKING:
    from tests.helpers.tiny_models import Models

# An example takes as long as the machine is busy, and the first one imports and compiles.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("patient", PATIENT)
# In CI a change is judged by the same examples each time; elsewhere new ones are tried.
settings.register_profile("ci", PATIENT, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")

ROOT = processes.ROOT
Ctcli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def pylm() -> Path:
    """The bundled checkpoint: a small trained Llama in six shards."""
    return ROOT / "fixtures" / "pylm"


def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores: many tests wait for processes of theirs."""
    return 3 * (os.cpu_count() or 1) // 2 or 1


def pytest_fixture_setup() -> None:
    """Let torch compute as `ctcli` has it: threads that wait for a core cost several times more."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def ctcli() -> Ctcli:
    """Runs `ctcli` with the given arguments in a process of its own."""

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ctcli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=processes.HANG_SECONDS,
            env={**os.environ, "COLUMNS": "200", **(env or {})},
        )

    return run


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Ctcli:
    """Runs `ctcli` with the given arguments in this process, several times as fast.

    All is as in a process of its own, from the arguments to the exit status, but for signals, what
    is imported, and lines of progress, which depend on the time that a run takes.
    """

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        words, status = ["ctcli", *map(str, arguments)], 0
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
            patched.setattr(sys, "argv", words)
            patched.setattr(process, "_leave", sys.exit)
            patched.setattr(progress, "_SECONDS_BETWEEN_LINES", math.inf)
            for name, value in {"COLUMNS": "200", **(env or {})}.items():
                patched.setenv(name, value)
            try:
                process._run(Interrupts())
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                gc.enable()
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Makes tiny models of every family."""
    from tests.helpers.tiny_models import maker  # imports transformers

    return maker(tmp_path_factory)
