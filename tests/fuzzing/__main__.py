"""Fuzz every target for a while: `python -m tests.fuzzing [SECONDS] [TARGET ...]`.

Each has a process of its own, and so many seconds of the processor; see `tests.fuzzing.guided`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzzing.targets import targets
from tests.helpers.processes import environment

_STATUS = re.compile(r"^#\d+\s.*\bcov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


def fuzz(name: str, seconds: float) -> int:
    """Fuzz a target for so long; prints what it found, and returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzzing.guided", name, str(seconds)],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=folder,
            env=environment({"TMPDIR": folder}),
        )
    reached = _STATUS.findall(done.stderr)
    if not reached or done.returncode not in (0, 1):
        print(done.stderr[-4000:])
        return 2
    print("  reached {} branches, {} of their features; {} inputs kept".format(*reached[-1]))
    return done.returncode


def main() -> int:
    """Fuzz the targets that are named, or all."""
    words = sys.argv[1:]
    seconds = float(words.pop(0)) if words and words[0].replace(".", "").isdecimal() else 600.0
    with tempfile.TemporaryDirectory() as folder:
        names = words or [*targets(Path(folder))]
    return max([fuzz(name, seconds) for name in names])


if __name__ == "__main__":
    sys.exit(main())
