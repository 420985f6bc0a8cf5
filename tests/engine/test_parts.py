"""`--part I/N`: whoever makes which files, whenever, DST is what one process makes of it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcli.engine.shares import divide
from ctcli.storage.layout import Layout, OutputFile
from tests.conftest import Ctcli
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint
from tests.helpers.dying import Moment, end_at, passes, stop_at
from tests.helpers.frozen_sources import make_sources
from tests.helpers.processes import HANG_SECONDS, ctcli_after, environment

# Everything between the command's name and DST, and behind it.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "reindex": ("reindex @pylm", "--max-shard-size 300KB"),
    "reindex link": ("reindex @pylm", "--link"),
    "fuse-norms": ("fuse-norms @golden", ""),
    "rotate": ("rotate @tied", "--max-shard-size 40KB"),
    "quantize": ("quantize @golden", "--scheme W4A16 --group-size 64 --max-shard-size 200KB"),
    "quantize shared scales": ("quantize @experts", "--scheme NVFP4A16 --max-shard-size 20KB"),
    "dequantize": ("dequantize @awq", "--max-shard-size 100KB"),
    "convert": ("convert @awq", "--max-shard-size 100KB"),
    "run": ("run quantize.toml @golden", ""),
    "export-bin": ("export-bin @pylm", "--tokenizer"),
}
QUANTIZE = ("--scheme", "W4A16", "--group-size", "64")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pylm: Path) -> Mapping[str, Path]:
    found = make_sources(tmp_path_factory.mktemp("sources"))
    return {**found, "awq": pylm.parent / "sources" / "awq-gemm" / "checkpoint"}


@pytest.fixture(scope="module")
def whole(pylm: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What one process makes of the bundled checkpoint."""
    destination = tmp_path_factory.mktemp("whole") / "out"
    words = [sys.executable, "-m", "ctcli", "quantize", str(pylm), str(destination), *QUANTIZE]
    subprocess.run(words, check=True, capture_output=True, timeout=HANG_SECONDS)
    return file_hashes(destination)


def partial_of(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.ctcli-partial")


def modes(folder: Path) -> dict[str, int]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def parts_of(count: int, seed: object) -> list[str]:
    """All parts, in an order that looks like none."""
    return random.Random(str(seed)).sample([f"{n}/{count}" for n in range(1, count + 1)], count)


@pytest.mark.parametrize("name", COMMANDS)
def test_parts_in_any_order_make_what_one_process_makes(
    name: str, cli: Ctcli, sources: Mapping[str, Path], tmp_path: Path
) -> None:
    before, after = COMMANDS[name]
    words = [str(sources.get(word[1:], word)) for word in before.split()]
    out = "out.bin" if name == "export-bin" else "out"
    with chdir(sources["here"]):
        alone = cli(*words, tmp_path / "alone" / out, *after.split())
        assert alone.returncode == 0, alone.stderr
        for count in (1, 2, 4, 7):
            folder = tmp_path / str(count)
            told = []
            for part in parts_of(count, (name, count)):
                options = (*after.split(), "--part", part, "--json")
                done = cli(*words, folder / out, *options)
                assert done.returncode == 0, done.stderr
                told.append(json.loads(done.stdout))
                # Parts without files may come behind the last one that has some.
                assert told[-1]["published"] == (folder / out).exists()
                assert told[-1]["published"] == (not told[-1]["parts_missing"])
            assert told[-1]["published"]
            assert file_hashes(folder) == file_hashes(tmp_path / "alone")
            assert modes(folder) == modes(tmp_path / "alone")
            files = [file for one in told for file in one["files"]]
            made = [path.name for path in folder.rglob("*") if path.is_file()]
            assert sorted(name.rpartition("/")[2] for name in files) == sorted(made)
            shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(4))
def test_parts_that_are_killed_and_begun_again_lose_nothing(
    seed: int, cli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    destination, chosen = tmp_path / "out", random.Random(seed)
    for part in parts_of(3, seed):
        words = ("quantize", pylm, destination, *QUANTIZE, "--part", part)
        done = end_at(Moment("change", chosen.randint(1, 60)), *words)
        if done.returncode:
            assert done.returncode == -SIGKILL
            assert not destination.exists()
            again = cli(*words)
            assert again.returncode == 0, again.stderr
    assert file_hashes(destination) == whole
    assert not partial_of(destination).exists()


@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_the_last_part_killed_at_any_change_is_finished_by_another_command(
    old: bool, cli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    """Also while it publishes, and while it clears up."""
    options = (*QUANTIZE, *(("--overwrite",) if old else ()))

    first = tmp_path / "first"
    if old:
        write_checkpoint(first, {"old.safetensors": {"a": array(3)}})
    for part in ("1/3", "3/3"):
        done = cli("quantize", pylm, first, *options, "--part", part)
        assert done.returncode == 0, done.stderr

    def prepare(name: str) -> Path:
        destination = tmp_path / name
        shutil.copytree(partial_of(first), partial_of(destination))
        if old:
            shutil.copytree(first, destination)
        return destination

    last = (*options, "--part", "2/3")
    every = passes("change", "quantize", pylm, prepare("counted"), *last)
    chosen = random.Random(old)
    early = chosen.sample(range(1, every - 20), 2)
    for i, count in enumerate([*early, *chosen.sample(range(every - 20, every + 1), 6)]):
        destination = prepare(f"out{i}")
        was = file_hashes(destination) if old else None
        end_at(Moment("change", count), "quantize", pylm, destination, *last)
        now = file_hashes(destination) if destination.exists() else None
        assert now in (was, whole)
        finished = cli("finish", destination)
        if finished.returncode:
            assert "part 2/3 is missing" in finished.stderr
            again = cli("quantize", pylm, destination, *last)
            assert again.returncode == 0, again.stderr
        assert file_hashes(destination) == whole
        assert not partial_of(destination).exists()


def test_a_part_that_stands_still_while_another_process_makes_it_changes_nothing_later(
    ctcli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    words = ("quantize", pylm, destination, *QUANTIZE, "--part")
    assert ctcli(*words, "1/2").returncode == 0
    for when in (Moment("job", 1, SIGSTOP), Moment("file", 1, SIGSTOP)):
        late = stop_at(when, *words, "2/2")
        assert not destination.exists()
        assert ctcli(*words, "2/2").returncode == 0
        assert file_hashes(destination) == whole
        late.send_signal(SIGCONT)
        _, stderr = late.communicate(timeout=HANG_SECONDS)
        assert late.returncode == 0, stderr
        assert file_hashes(destination) == whole
        assert not partial_of(destination).exists()
        shutil.rmtree(destination)
        assert ctcli(*words, "1/2").returncode == 0


def test_a_part_that_stands_still_does_not_spoil_a_file_that_is_not_published(
    ctcli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    words = ("quantize", pylm, destination, *QUANTIZE, "--part")
    late = stop_at(Moment("job", 2, SIGSTOP), *words, "2/2")
    assert ctcli(*words, "2/2").returncode == 0
    late.send_signal(SIGCONT)
    _, stderr = late.communicate(timeout=HANG_SECONDS)
    assert late.returncode == 0, stderr
    assert ctcli(*words, "1/2").returncode == 0
    assert file_hashes(destination) == whole


@pytest.mark.parametrize("seed", range(2))
def test_all_parts_at_once_replace_dst_together(
    seed: int, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    destination = write_checkpoint(tmp_path / "out", {"old.safetensors": {"a": array(3)}})
    parts = [*parts_of(4, seed), "1/4"]  # one of them twice
    command = [sys.executable, "-m", "ctcli", "quantize", str(pylm), str(destination), *QUANTIZE]
    running = [
        subprocess.Popen(
            [*command, "--overwrite", "--part", part],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for part in parts
    ]
    for process in running:
        _, stderr = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, stderr
    assert file_hashes(destination) == whole
    assert not partial_of(destination).exists()


# When a process is about to call a function, another one publishes DST.
OVERTAKEN = """
import subprocess, sys
from ctcli.{0} import {1}

late = {1}.{2}

def overtaken(*arguments):
    subprocess.run([sys.executable, "-m", "ctcli", *{3!r}], check=True, capture_output=True)
    return late(*arguments)

{1}.{2} = overtaken
"""


@pytest.mark.parametrize("about_to", ["look at what it publishes", "write"])
def test_a_part_is_overtaken(
    about_to: str, pylm: Path, whole: Mapping[str, str], tmp_path: Path, ctcli: Ctcli
) -> None:
    destination = write_checkpoint(tmp_path / "out", {"old.safetensors": {"a": array(3)}})
    words = ("quantize", pylm, destination, *QUANTIZE, "--overwrite", "--part")
    assert ctcli(*words, "1/2").returncode == 0
    if about_to == "write":
        preparation = OVERTAKEN.format("engine", "shares", "execute", [*map(str, words), "2/2"])
    else:
        finish = ["finish", str(destination)]
        preparation = OVERTAKEN.format("storage", "gathering", "look_for_leftover", finish)
    done = subprocess.run(
        ctcli_after(preparation, *words, "2/2"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=HANG_SECONDS,
    )
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    assert file_hashes(destination) == whole
    assert not partial_of(destination).exists()


Spoil = Callable[[Path], Sequence[str]]


def _touch(source: Path) -> Sequence[str]:
    os.utime(source / "model-00001-of-00006.safetensors", ns=(1, 1))
    return ()


def _other(source: Path) -> Sequence[str]:
    shutil.rmtree(source)
    write_checkpoint(source, {"model.safetensors": {"model.x_proj.weight": array(64, 64)}})
    return ()


DIFFERENT: Mapping[str, tuple[Spoil, str]] = {
    "option": (
        lambda _: ("--asymmetric",),
        "quantize: symmetric is not given there, and False here",
    ),
    "parts": (lambda _: ("--part", "2/5"), "3 parts there, and 5 parts here"),
    "fsync": (lambda _: ("--fsync",), "--fsync is off there, and on here"),
    "overwrite": (lambda _: ("--overwrite",), "--overwrite is off there, and on here"),
    "time": (_touch, "another size or time of change of model-00001-of-00006.safetensors"),
    "source": (_other, "SRC: its SHA-256 of its headers is "),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_part_of_another_plan_is_refused_by_the_difference(
    what: str, cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    source, destination = tmp_path / "source", tmp_path / "out"
    shutil.copytree(pylm, source)
    words = ("quantize", source, destination, *QUANTIZE)
    assert cli(*words, "--part", "1/3").returncode == 0
    before = file_hashes(tmp_path)
    spoil, expected = DIFFERENT[what]
    options = spoil(source)
    for dry in ((), ("--dry-run",)):
        done = cli(*words, "--part", "2/3", *options, *dry)
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert "next: Give every part the same SRC" in done.stderr
    after = file_hashes(tmp_path)
    kept = [name for name in before if name.startswith(".out")]
    assert [before[name] for name in kept] == [after[name] for name in kept]


def test_a_part_by_another_version_is_refused(ctcli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    words = ("quantize", pylm, tmp_path / "out", *QUANTIZE)
    assert ctcli(*words, "--part", "1/2").returncode == 0
    newer = ctcli_after("import ctcli; ctcli.__version__ = '99.1'", *words, "--part", "2/2")
    done = subprocess.run(newer, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 1
    assert "began it, and this is ctcli 99.1" in done.stderr


def test_finish_names_the_missing_parts_and_a_command(
    cli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    words = ("quantize", pylm, destination, *QUANTIZE)
    planned = json.loads(cli(*words, "--part", "2/3", "--dry-run", "--json").stdout)
    assert (planned["published"], planned["parts_missing"]) == (False, ["1/3", "2/3", "3/3"])
    nothing = cli("finish", destination)
    assert nothing.returncode == 1
    assert "no parts of it lie in" in nothing.stderr
    made = cli(*words, "--part", "2/3")
    assert made.returncode == 0
    assert [line[-10:] for line in made.stdout.splitlines()[-2:]] == ["--part 1/3", "--part 3/3"]
    done = cli("finish", destination)
    assert done.returncode == 1
    assert "part 1/3 is missing" in done.stderr
    assert "part 3/3 is missing" in done.stderr
    assert "part 2/3" not in done.stderr
    (hint,) = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    command = hint.removeprefix("next: Run ctcli ").partition(", and")[0].split()
    for part in ("1/3", "3/3"):
        assert cli(*command[:-1], part).returncode == 0
    assert file_hashes(destination) == whole
    again = cli("finish", destination, "--json")
    assert (again.returncode, json.loads(again.stdout)["published"]) == (0, True)


def test_parts_and_one_process_do_not_take_each_others_work(
    cli: Ctcli, ctcli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    words = ("quantize", pylm, tmp_path / "out", *QUANTIZE)
    assert cli(*words, "--part", "1/2").returncode == 0
    before = file_hashes(tmp_path)
    for dry in ((), ("--dry-run",)):
        alone = cli(*words, *dry)
        assert alone.returncode == 1
        assert "parts of it have been made already" in alone.stderr
    assert file_hashes(tmp_path) == before
    words = ("quantize", pylm, tmp_path / "other", *QUANTIZE)
    end_at(Moment("file", 2), *words)
    before = file_hashes(tmp_path)
    part = cli(*words, "--part", "1/2")
    assert part.returncode == 1
    assert "a run by one process was interrupted there" in part.stderr
    assert file_hashes(tmp_path) == before
    assert ctcli(*words).returncode == 0


def test_a_part_run_again_after_dst_is_there_does_nothing(
    cli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    words = ("quantize", pylm, tmp_path / "out", *QUANTIZE, "--part")
    for part in ("1/2", "2/2"):
        assert cli(*words, part).returncode == 0
    done = cli(*words, "1/2", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["published"], told["bytes_written"]) == (True, 0)
    assert file_hashes(tmp_path / "out") == whole
    assert not partial_of(tmp_path / "out").exists()
    other = cli("quantize", pylm, tmp_path / "out", "--scheme", "FP8_DYNAMIC", "--part", "1/2")
    assert other.returncode == 1
    assert "DST exists and is not empty" in other.stderr


def test_a_full_disk_on_one_machine_stops_one_part(
    ctcli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    words = ("quantize", pylm, tmp_path / "out", *QUANTIZE, "--part")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    full = subprocess.run(
        ctcli_after(limit, *words, "2/2"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert full.returncode == 1
    assert "the disk (or a quota or file-size limit) is full" in full.stderr
    assert ctcli(*words, "1/2").returncode == 0
    assert not (tmp_path / "out").exists()
    assert ctcli(*words, "2/2").returncode == 0
    assert file_hashes(tmp_path / "out") == whole


def test_a_part_that_cannot_be_one_is_wrong_usage(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    for text in ("0/4", "5/4", "1", "1/0", "a/b", "1/4/5", "-1/4", "1/"):
        done = cli("reindex", pylm, tmp_path / "out", f"--part={text}")
        assert done.returncode == 2, text
        assert "give I/N" in done.stderr
    assert not any(tmp_path.iterdir())


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60), st.integers(1, 80))
def test_shares_are_alike_in_bytes_and_neighbours_stay_together(
    sizes: list[int], count: int
) -> None:
    files = tuple(OutputFile(f"{i}", b"", is_shard=True) for i in range(len(sizes)))
    for file, size in zip(files, sizes, strict=True):
        file.__dict__["size"] = size
    owners = divide(Layout(files, ()), count)
    assert [*owners] == [file.name for file in files]
    assert [*owners.values()] == sorted(owners.values())
    assert set(owners.values()) <= set(range(1, count + 1))
    loads = [0] * count
    for size, owner in zip(sizes, owners.values(), strict=True):
        loads[owner - 1] += size
    assert max(loads) <= sum(sizes) / count + max(sizes)


def test_sigterm_on_a_part_says_that_the_same_command_continues(pylm: Path, tmp_path: Path) -> None:
    words = ("quantize", pylm, tmp_path / "out", *QUANTIZE, "--part", "1/2")
    done = end_at(Moment("note", 1, signal.SIGTERM), *words)
    assert done.returncode == 128 + signal.SIGTERM
    assert "The same command continues" in done.stderr
