"""Fuzz every target for a while: `python -m tests.fuzzing [SECONDS] [TARGET ...]`.

Inputs that reach lines of ctcli which none before them reached are changed further. What ends in
anything but the expected error, or takes longer than `SLOW`, is written to `tests/fuzzing/corpus`,
where a test reads it from then on.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzzing.mutating import mutate
from tests.fuzzing.targets import Target, targets

CORPUS = Path(__file__).parent / "corpus"
SLOW = 10.0  # seconds of the processor
_DULL = 100  # calls
_CTCLI = f"{os.sep}ctcli{os.sep}"


class Coverage:
    """The lines of ctcli that were reached so far.

    A function that has shown nothing new for many calls is looked at no more: that would take most
    of the time.
    """

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self._dull: Counter[CodeType] = Counter()

    def __enter__(self) -> None:
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG002
        code = frame.f_code
        if _CTCLI not in code.co_filename or self._dull[code] > _DULL:
            return None
        self._dull[code] += 1
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG002
        line = frame.f_code.co_filename, frame.f_lineno
        if line not in self.lines:
            self.lines.add(line)
            self._dull[frame.f_code] = 0
        return self._line


def fuzz(name: str, target: Target, folder: Path, seconds: float) -> int:
    """Fuzz a target for so long; prints what it found, and returns how much."""
    generator, coverage = random.Random(f"{name}{time.time_ns()}"), Coverage()
    kept, tried, found = [*target.seeds], 0, dict[str, str]()
    end = time.process_time() + seconds
    while time.process_time() < end:
        sound = tried < len(target.seeds)
        content = target.seeds[tried] if sound else mutate(generator.choice(kept), generator)
        tried += 1
        reached, start = len(coverage.lines), time.process_time()
        problem = ""
        try:
            with coverage:
                target.read(folder, content)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if _CTCLI in frame.filename] or frames
            problem = f"{type(error).__name__} in {own[-1].name}, line {own[-1].lineno}: {error}"
            key = f"{type(error).__name__} {own[-1].filename}:{own[-1].lineno}"
        if not problem and time.process_time() - start > SLOW:
            problem = key = "slow"
        if problem and key not in found:
            found[key] = problem
            print(f"  {name}: {problem[:300]}", flush=True)
            path = CORPUS / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
            path.write_bytes(content)
        if len(coverage.lines) > reached and len(content) < 1 << 16:
            kept.append(content)
    print(
        f"{name}: {tried:,} inputs, {len(coverage.lines):,} lines reached, {len(kept)} kept, "
        f"{len(found)} findings",
        flush=True,
    )
    return len(found)


def main() -> int:
    """Fuzz the targets that are named, or all."""
    words = sys.argv[1:]
    seconds = float(words.pop(0)) if words and words[0].replace(".", "").isdecimal() else 600.0
    CORPUS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        every = targets(Path(folder))
        return sum(fuzz(n, every[n], Path(folder), seconds) for n in words or every)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
