"""Fuzz one target, guided by coverage: `python -m tests.fuzzing.guided TARGET SECONDS`.

atheris instruments ctcli's modules as they are imported, and libFuzzer keeps the inputs that reach
something new. What ends in anything but the expected error, or takes longer than `SLOW`, is written
to the corpus of found cases; then it goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import atheris

from ctcli import ops

SLOW = 10.0  # seconds of the processor
_LONGEST = 1 << 18  # bytes
_CTCLI = f"{os.sep}ctcli{os.sep}"


def key_of(error: Exception) -> str:
    """Where in ctcli an error was raised, or passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _CTCLI in frame.filename] or [*frames]
    return f"{type(error).__name__} in {own[-1].filename}:{own[-1].lineno}"


class Fuzzed:
    """A target, how often it was called, and what it ended in that it should not."""

    def __init__(
        self, name: str, read: Callable[[bytes], None], seconds: float, corpus: Path
    ) -> None:
        self._name, self._read, self._corpus = name, read, corpus
        self._end = time.process_time() + seconds
        self._tried, self._found = 0, set[str]()

    def __call__(self, content: bytes) -> None:
        """Try an input; ends the process when its time is over."""
        start = time.process_time()
        if start > self._end:
            print(f"{self._name}: {self._tried:,} inputs, {len(self._found)} findings", flush=True)
            os._exit(len(self._found) > 0)
        self._tried += 1
        try:
            self._read(content)
        except Exception as error:
            self._keep(content, key_of(error), str(error))
        if time.process_time() - start > SLOW:
            self._keep(content, "slow", "")

    def _keep(self, content: bytes, key: str, said: str) -> None:
        if key not in self._found:
            self._found.add(key)
            print(f"  {self._name}: {key}: {said[:300]!r}", flush=True)
            digest = hashlib.sha256(content).hexdigest()[:12]
            (self._corpus / f"{self._name}-{digest}").write_bytes(content)


def _mutated(content: bytes, longest: int, seed: int) -> bytes:
    from tests.fuzzing.mutating import mutate

    generator = random.Random(seed)
    if generator.random() < 0.3:
        return bytes(atheris.Mutate(content, longest))
    return mutate(content, generator)[:longest]


def main() -> None:
    """Fuzz the target that is named."""
    name, seconds = sys.argv[1:]
    # Kernels are compiled from their bytecode, so that they are imported before.
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        if not module.ispkg:
            importlib.import_module(module.name)
    atheris.instrument_imports(include=["ctcli"]).__enter__()
    from tests.fuzzing.targets import CORPUS, targets

    folder = Path(tempfile.mkdtemp())
    target, seeds = targets(folder)[name], folder / "seeds"
    seeds.mkdir()
    kept = [path.read_bytes() for path in CORPUS.glob(f"{name}-*")]
    for i, content in enumerate([*target.seeds, *kept]):
        (seeds / str(i)).write_bytes(content)
    read = partial(target.read, folder)
    fuzzed = Fuzzed(name, read, float(seconds), CORPUS)
    limits = [f"-max_len={_LONGEST}", "-len_control=0", "-timeout=300", "-rss_limit_mb=4096"]
    atheris.Setup(["fuzz", *limits, str(seeds)], fuzzed, custom_mutator=_mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
