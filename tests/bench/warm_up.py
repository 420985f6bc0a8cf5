"""Bring the machine into the same state before each run: `python -m tests.bench.warm_up DIR ...`.

The checkpoints are read into the page cache, or dropped from it after `--cold`, and free memory is
filled up with it, too, as on a machine that has been working for a day. Virtual machines give free
memory back to their host within seconds, and getting it anew takes several times as long as the
work to be timed: a command of half a second would meet another machine than one of three.
"""

import os
import sys
import tempfile
from pathlib import Path

_LEFT_FREE = 512 * 1024**2
_STEP = 16 * 1024**2


def main() -> None:
    _fill()
    is_cold = sys.argv[1:2] == ["--cold"]
    for folder in sys.argv[1 + is_cold :]:
        for path in sorted(Path(folder).iterdir()):
            with path.open("rb", buffering=0) as file:
                if is_cold:
                    os.fsync(file)
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while not is_cold and file.read(_STEP):
                    pass


def _fill() -> None:
    """Read a file without content, as large as the memory, until no more of that is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    empty = Path(tempfile.gettempdir()) / "ctcli-bench" / "empty"
    empty.parent.mkdir(exist_ok=True)
    with empty.open("ab") as file:
        file.truncate(os.sysconf("SC_PHYS_PAGES") * page)
    with empty.open("rb", buffering=0) as file:
        while os.sysconf("SC_AVPHYS_PAGES") * page > _LEFT_FREE and file.read(_STEP):
            pass


if __name__ == "__main__":
    main()
