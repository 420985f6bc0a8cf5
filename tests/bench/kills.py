"""Kill runs of all commands again and again: `python -m tests.bench.kills [RUNS] [JOBS] [MB]`.

Each command is run on a checkpoint of 300 MB (`dequantize` and `convert` on one that is quantized)
until it is killed (TERM, INT, KILL in turn) at a random moment of the time that it takes, then
again, and after a few kills undisturbed. DST must be absent or whole after each, and whole at last.
Likewise jobs that publish on a hub.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.fuzzing.checkpoints import write_large
from tests.helpers.checkpoints import file_hashes
from tests.helpers.hub import Hub
from tests.helpers.processes import HANG_SECONDS, environment

RECIPES = Path(__file__).parent / "recipes"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
_IN_A_ROW = 4  # kills before a run is let alone
TOKEN = "hf_" + "Qd3" * 11 + "T"
COMMANDS: Mapping[str, Sequence[str]] = {
    "reindex": ("reindex", "--max-shard-size", "40MB"),
    "reindex --overwrite": ("reindex", "--overwrite"),
    "reindex --fsync": ("reindex", "--fsync"),
    "fuse-norms": ("fuse-norms",),
    "equalize": ("equalize",),
    "rotate": ("rotate", "--transform-type", "random-hadamard", "--seed", "1"),
    "quantize FP8_BLOCK": ("quantize", "--scheme", "FP8_BLOCK"),
    "quantize NVFP4A16": ("quantize", "--scheme", "NVFP4A16"),
    "run": ("run", str(RECIPES / "rotate-NVFP4A16.toml")),
    "dequantize": ("dequantize",),
    "convert": ("convert",),
    "export-bin": ("export-bin",),
}


def start(words: Sequence[str | Path], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a `ctcli`."""
    return subprocess.Popen(
        [sys.executable, "-m", "ctcli", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        cwd=env.get("PWD"),
    )


def finish(words: Sequence[str | Path], env: Mapping[str, str]) -> float:
    """Run a `ctcli` to its end; returns the seconds that it takes."""
    begin = time.monotonic()
    process = start(words, env)
    _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    return time.monotonic() - begin


class Tally:
    """What became of the runs that were killed."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()

    def kill(self, words: Sequence[str | Path], seconds: float, env: Mapping[str, str]) -> None:
        """Run, and kill it after a part of the time that it would take."""
        number = _SIGNALS[self.ends.total() % len(_SIGNALS)]
        process = start(words, env)
        try:
            process.wait(random.random() * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, said = process.communicate(timeout=HANG_SECONDS)
        if "Traceback" in said and f"{os.sep}ctcli{os.sep}" not in said:
            self.ends["while Python started"] += 1  # which has its own way with SIGINT
            return
        assert "Traceback" not in said, said
        expected = {0, -number, 128 + number} | ({1} if "DST exists" in said else set())
        assert process.returncode in expected, f"{process.returncode}: {said}"
        self.ends["done before" if process.returncode in (0, 1) else number.name] += 1


def write_fp8(source: Path, folder: Path) -> Path:
    """Write a checkpoint in FP8 blocks, as others than compressed-tensors declare it."""
    finish(["quantize", source, folder, "--scheme", "FP8_BLOCK"], {})
    (folder / "ctcli_recipe.toml").unlink()
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        stop = 8 + int.from_bytes(raw[:8], "little")
        header = raw[8:stop].replace(b'weight_scale"', b'weight_scale_inv"')
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[stop:])
    index = folder / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes().replace(b'weight_scale"', b'weight_scale_inv"'))
    declared = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": declared}))
    return folder


@dataclass(frozen=True)
class Run:
    """A command on a checkpoint, and where it puts what it makes."""

    name: str
    source: Path
    out: Path

    @property
    def words(self) -> list[str | Path]:
        """The command line."""
        command, *options = COMMANDS[self.name]
        given = [options.pop(0)] if command == "run" else []
        return [command, *given, self.source, self.out, *options]

    def prepare(self) -> Mapping[str, str]:
        """Put there what is to be replaced, and return what lies there."""
        if "--overwrite" in self.words:
            self.out.mkdir()
            (self.out / "config.json").write_text("{}")
        return self.found

    @property
    def found(self) -> Mapping[str, str]:
        """Hashes of what lies there."""
        if self.out.is_file():
            return {self.out.name: sha256(self.out.read_bytes()).hexdigest()}
        return file_hashes(self.out)

    def clear(self) -> None:
        """Do away with it."""
        for path in (self.out, self.out.with_name(f".{self.out.name}.ctcli-partial")):
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)


def kill_runs(folder: Path, count: int, megabytes: int) -> None:
    """Kill so many runs of all commands."""
    source = write_large(folder / "source", megabytes)
    quantized = write_fp8(source, folder / "quantized")
    tally, begin = Tally(), time.monotonic()
    sources = {"dequantize": quantized, "convert": quantized}
    runs = [Run(name, sources.get(name, source), folder / "out") for name in COMMANDS]
    whole, times = dict[str, Mapping[str, str]](), dict[str, float]()
    for run in runs:
        for _ in range(2):  # the first time, kernels may have to be compiled
            run.prepare()
            times[run.name] = finish(run.words, {})
            whole[run.name] = run.found
            run.clear()
    while tally.ends.total() < count:
        print(dict(tally.ends), flush=True)
        for run in runs:
            old = run.prepare()
            for _ in range(min(_IN_A_ROW, count - tally.ends.total())):
                tally.kill(run.words, times[run.name], {})
                assert run.found in (old, whole[run.name]), f"{run.name}: neither old nor new"
            if run.found == old:
                finish(run.words, {})
            assert run.found == whole[run.name], f"{run.name}: other bytes than undisturbed"
            run.clear()
    print(
        f"{tally.ends.total()} runs on {megabytes} MB: {dict(tally.ends)}, all whole in the end, "
        f"{time.monotonic() - begin:.0f} s"
    )


def kill_jobs(folder: Path, count: int) -> None:
    """Kill so many jobs that read from a hub and publish there."""
    source = write_large(folder / "small", 20)
    tally, begin, number = Tally(), time.monotonic(), 0
    with Hub() as hub:
        hub.token = TOKEN
        hub.add("org/model", source)
        env = {**hub.env(folder / "home", TOKEN), "PWD": str(folder)}
        words = ["quantize", "org/model", "--scheme", "FP8_BLOCK", "--stream"]
        finish([*words, "hf://org/whole"], env)
        seconds = finish([*words, "hf://org/again"], env)
        whole = hub.contents("org/whole")
        while tally.ends.total() < count:
            number += 1
            print(dict(tally.ends), flush=True)
            made = f"org/made{number}"
            for _ in range(min(_IN_A_ROW, count - tally.ends.total())):
                tally.kill([*words, f"hf://{made}", "--overwrite"], seconds, env)
                found = hub.contents(made) if made in hub.repos else {}
                names = found.keys() - {".gitattributes"}
                assert not names or names >= whole.keys() - {".gitattributes"}, "half a model"
            finish([*words, f"hf://{made}", "--overwrite"], env)
            found = hub.contents(made)
            differ = [name for name in whole if name != "README.md" and found[name] != whole[name]]
            assert not differ, f"other bytes than undisturbed: {differ}"
            assert set(hub.repos[made].branches) == {"main"}
    print(
        f"{tally.ends.total()} jobs on a hub: {dict(tally.ends)}, all published in the end, "
        f"{time.monotonic() - begin:.0f} s"
    )


def main() -> None:
    """Kill as many as the arguments say."""
    runs, jobs, megabytes = [*map(int, sys.argv[1:]), *(1000, 100, 300)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        if runs:
            kill_runs(Path(folder), runs, megabytes)
        if jobs:
            kill_jobs(Path(folder), jobs)


if __name__ == "__main__":
    main()
