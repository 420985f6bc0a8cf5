"""Let several processes make one DST at once: `python -m tests.bench.crowds [ROUNDS] [SEED]`.

In each round some runs begin at once or one after another, for a DST that holds something else:
parts (some of them twice), runs alone, `finish`, in a mix; some are killed. DST must be as it was
or whole when they have ended, nothing may end in a traceback, and the same commands make it whole.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from tests.helpers.checkpoints import file_hashes
from tests.helpers.processes import HANG_SECONDS, ROOT, environment

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "out": ("quantize", "--scheme", "W4A16", "--group-size", "64"),
    "out.bin": ("export-bin",),
}
_KINDS = ("part", "alone", "finish")
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_BY_SIGNAL = {status for each in _SIGNALS for status in (-each, 128 + each)}


class Round:
    """Runs that make one DST.

    Args:
        place: DST.
        dice: decides what happens.
    """

    def __init__(self, place: Path, dice: random.Random) -> None:
        command, *options = COMMANDS[place.name]
        self._words = [command, str(ROOT / "fixtures" / "pylm"), str(place), *options]
        self._place, self._dice = place, dice
        self._count = dice.randint(2, 4)
        self._kinds = dice.choice([("part",), ("part", "part", "finish"), ("alone",), _KINDS])
        self._running: list[subprocess.Popen[str]] = []

    def crowd(self) -> list[str]:
        """Begin runs, kill some; returns what was said by those that ended as none should."""
        for _ in range(self._dice.randint(3, 6)):
            self._begin()
            time.sleep(self._dice.choice([0, 0.3 * self._dice.random()]))
        for _ in range(self._dice.randint(0, 3)):
            time.sleep(2 * self._dice.random())
            self._dice.choice(self._running).send_signal(self._dice.choice(_SIGNALS))
            if self._dice.random() < 0.6:
                self._begin()
        said = [run.communicate(timeout=HANG_SECONDS)[1] for run in self._running]
        known = {0, 1, 2, *_BY_SIGNAL}
        ends = zip(self._running, said, strict=True)
        return [text for run, text in ends if run.returncode not in known or "Traceback" in text]

    def finish(self) -> str:
        """Make DST by the same commands, undisturbed; returns what the last one said."""
        said = ""
        for number in range(1, self._count + 1):
            run = self._start([*self._words, "--overwrite", "--part", f"{number}/{self._count}"])
            said = run.communicate(timeout=HANG_SECONDS)[1]
            if run.returncode:  # a run alone has begun it
                run = self._start([*self._words, "--overwrite"])
                return run.communicate(timeout=HANG_SECONDS)[1]
        return said

    def whole(self) -> None:
        """Make DST, where nothing is."""
        run = self._start(self._words)
        run.communicate(timeout=HANG_SECONDS)
        assert run.returncode == 0

    def _begin(self) -> None:
        part = f"{self._dice.randint(1, self._count)}/{self._count}"
        self._running.append(
            self._start(
                {
                    "part": [*self._words, "--overwrite", "--part", part],
                    "alone": [*self._words, "--overwrite"],
                    "finish": ["finish", str(self._place)],
                }[self._dice.choice(self._kinds)]
            )
        )

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ctcli", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )


def content(place: Path) -> object:
    """What tells one DST from another; None: there is none."""
    if place.is_dir():
        return file_hashes(place)
    return sha256(place.read_bytes()).hexdigest() if place.exists() else None


def main(rounds: int, seed: int) -> None:
    """Print what went wrong, and how many rounds there were."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = {}
        for name in COMMANDS:
            Round(place := Path(folder, name), random.Random(seed)).whole()
            whole[name] = content(place)
        for number in range(rounds):
            place = Path(folder, (*COMMANDS,)[number % len(COMMANDS)])
            for path in (place, partial := place.with_name(f".{place.name}.ctcli-partial")):
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
            (place if place.suffix else place / "config.json").parent.mkdir(exist_ok=True)
            (place if place.suffix else place / "config.json").write_bytes(b"old")
            old, crowd = content(place), Round(place, random.Random(seed + number))
            problems = crowd.crowd()
            # Killed between two renames, where two folders cannot change places at once.
            is_aside = not place.exists() and (partial / "replaced").exists()
            if content(place) not in (old, whole[place.name]) and not is_aside:
                problems.append("DST is neither what it was nor whole")
            said = crowd.finish()
            if content(place) != whole[place.name]:
                problems.append(f"DST is not whole at last: {said}")
            faults += len(problems)
            for problem in problems:
                print(f"round {number}, seed {seed}: {problem}", flush=True)
    print(f"{rounds} rounds, {faults} faults")


if __name__ == "__main__":
    given = [*map(int, sys.argv[1:])]
    main(*(given + [200, 0][len(given) :]))
