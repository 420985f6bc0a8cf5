"""Bring the machine into the same state before each run: `python -m tests.bench.warm_up DIR ...`.

The checkpoints are read into the page cache; then a moment passes. A virtual machine may give free
memory back to its host within two seconds, and getting it anew costs several times as much as using
it: right after another command, one of half a second would meet another machine than one of three.
"""

import sys
import time
from pathlib import Path

_STEP = 16 * 1024**2
_SECONDS = 4.0

for folder in sys.argv[1:]:
    for path in sorted(Path(folder).iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(_STEP):
                pass
time.sleep(_SECONDS)
