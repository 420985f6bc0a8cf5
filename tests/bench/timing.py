"""Whole processes, in turn, several times: wall time, processor time and peak memory.

This process stays small (no numpy, no torch): a child's peak memory cannot read below its
parent's at the time of the fork.
"""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One run of one contender; seconds, and bytes of the largest process."""

    wall: float
    processor: float
    peak: int
    exit_status: int


def words_of(command: str, places: Mapping[str, str]) -> list[str]:
    """A command line's words, with {src}, {dst}, {made} and {python} filled in."""
    return [word.format(**places) for word in shlex.split(command)]


def race(
    commands: Mapping[str, str], places: Mapping[str, str], runs: int, is_cold: bool
) -> dict[str, list[Sample]]:
    """Run each command in turn, warmed up, `runs` times after one uncounted round.

    Args:
        commands: by contender.
        places: what {src} and the like stand for.
        runs: how many count.
        is_cold: checkpoints have to be read from the disk.
    """
    read = [
        places[name] for name in ("src", "made") if places[name] and Path(places[name]).is_dir()
    ]
    warm_up = [sys.executable, "-m", "tests.bench.warm_up", *(["--cold"] if is_cold else []), *read]
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for run in range(runs + 1):
        for name, command in commands.items():
            remove(Path(places["dst"]))
            subprocess.run(warm_up, check=True)
            sample = _run(words_of(command, places))
            if run:
                samples[name].append(sample)
    remove(Path(places["dst"]))
    return samples


def report(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """A table: each contender's figures, and the first one's time as a ratio to the others'."""
    ours = next(iter(samples))
    lines = [f"{'':24} {'wall s: median':>15} {'min':>7} {'max':>7} {'cpu s':>7} {'peak MB':>8}"]
    for name, runs in samples.items():
        walls = [run.wall for run in runs]
        processor = statistics.median(run.processor for run in runs)
        peak = max(run.peak for run in runs) / 1e6
        failed = sum(run.exit_status != 0 for run in runs)
        lines.append(
            f"{name:24} {statistics.median(walls):15.2f} {min(walls):7.2f} {max(walls):7.2f} "
            f"{processor:7.2f} {peak:8.0f}" + (f"  ({failed} runs FAILED)" if failed else "")
        )
    for name, runs in samples.items():
        if name != ours:
            walls = [run.wall for run in runs]
            lines.append(f"{ours} / {name}: {_ratios(samples[ours], walls)}")
    return lines


def report_chain(samples: Mapping[str, Sequence[Sample]]) -> str:
    """The first one's time as a ratio to that of all others together."""
    ours, *others = samples
    rounds = zip(*(samples[name] for name in others), strict=True)
    together = [sum(run.wall for run in runs) for runs in rounds]
    return f"{ours} / the others together: {_ratios(samples[ours], together)}"


def _ratios(samples: Sequence[Sample], walls: Sequence[float]) -> str:
    """Times as ratios to those of the same round."""
    ratios = [a.wall / b for a, b in zip(samples, walls, strict=True)]
    return f"median {statistics.median(ratios):.2f}, min {min(ratios):.2f}, max {max(ratios):.2f}"


def remove(path: Path) -> None:
    """Delete a file or a directory, if there is one."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _run(words: Sequence[str]) -> Sample:
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, process.returncode)
