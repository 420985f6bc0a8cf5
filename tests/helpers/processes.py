"""`ctcli` in processes of its own that the tests have prepared."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# No process takes so long, however busy the machine is: one that does hangs.
HANG_SECONDS = 600.0


def ctcli_after(preparation: str, *arguments: str | Path) -> list[str]:
    """The command of a `ctcli` that runs some lines of Python before anything else."""
    program = f"{preparation}\nfrom ctcli.__main__ import main\nmain()"
    return [sys.executable, "-c", program, *map(str, arguments)]


def environment(further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables for a process that imports `tests` and `ctcli`, in whatever folder it works."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), known] if known else [str(ROOT)])
    return {**os.environ, "COLUMNS": "200", "PYTHONPATH": path, **(further or {})}
