"""What all tests share: the command as a real process, and the bundled checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.helpers.tiny_models import Models

# In CI a change is judged by the same examples each time; elsewhere new ones are tried.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).parent.parent
Ctcli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def pylm() -> Path:
    """The bundled checkpoint: a small trained Llama in six shards."""
    return ROOT / "fixtures" / "pylm"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As `ctcli` computes: threads of torch that wait for a core cost tests several times more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ctcli() -> Ctcli:
    """Runs `ctcli` with the given arguments in a process of its own."""

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ctcli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, "COLUMNS": "200", **(env or {})},
        )

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Makes tiny models of every family."""
    from tests.helpers.tiny_models import maker  # imports transformers

    return maker(tmp_path_factory)
