"""Bring the machine into the same state before each run: `python -m tests.bench.warm_up SRC`.

The source is read into the page cache, and memory is touched: virtual machines give what has been
free for a while back to their host, and getting it anew costs more than the work to be timed.
"""

import sys
from pathlib import Path

_BYTES = 4 * 1024**3  # more than any contender holds, output in the page cache included
_STEP = 16 * 1024**2

for path in sorted(Path(sys.argv[1]).iterdir()):
    with path.open("rb", buffering=0) as file:
        while file.read(_STEP):
            pass
_ = bytearray(b"\x01") * _BYTES
