"""Killed runs: DST is whole or absent, SRC is untouched, and the same command continues."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import numpy as np
import pytest

from ctcli.engine.plan import Settings, make_plan
from ctcli.engine.run import execute
from ctcli.errors import CtcliError
from ctcli.rewrites.reindex import ReindexOptions, reindex
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint

LAYERS = 8
ROLES = [f"self_attn.{role}_proj" for role in "qkv"]
ROLES += [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
WHOLE_SHARD = "model-00001-of-00008.safetensors"  # the largest; stays as it is
Hashes = Mapping[str, str]
Stamps = dict[str, tuple[int, int, int]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """224 MiB in eight shards; all but the first are cut in the middle of fused sets."""
    values = array(1024, 1024)
    names = [f"model.layers.{n}.{role}.weight" for n in range(LAYERS) for role in ROLES]
    shards = [[f"model.embed_tokens.part{i}" for i in range(8)]]
    shards += [names[i : i + 7] for i in range(0, len(names), 7)]
    folder = write_checkpoint(
        tmp_path_factory.mktemp("long") / "source",
        {
            f"model-{i:05d}-of-{len(shards):05d}.safetensors": {
                name: np.roll(values, 31 * i + j) for j, name in enumerate(shard)
            }
            for i, shard in enumerate(shards, start=1)
        },
        others={"tokenizer.json": "{}", "nested/template.txt": "text"},
    )
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> Hashes:
    """What `reindex` makes of `source` when nothing interferes."""
    destination = source.with_name("undisturbed")
    subprocess.run(command(source, destination), check=True, capture_output=True)
    hashes = file_hashes(destination)
    shutil.rmtree(destination)
    return hashes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied afterwards: pytest would keep gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def command(source: Path, destination: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "ctcli", "reindex", str(source), str(destination), *options]


def partial_of(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.ctcli-partial")


def journaled(destination: Path) -> Stamps:
    """Inode and times of the files that the journal calls complete."""
    journal, checkpoint = (
        partial_of(destination) / "journal",
        partial_of(destination) / "checkpoint",
    )
    _, *notes = [line for line in journal.read_text().splitlines(True) if line.endswith("\n")]
    # Two entries: a complete file and what was measured of it; more: a part of a file.
    return stamps(checkpoint, [note[0] for note in map(json.loads, notes) if len(note) == 2])


def stamps(folder: Path, names: list[str]) -> Stamps:
    status = {name: (folder / name).stat() for name in names}
    return {name: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in status.items()}


def source_state(source: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in source.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def bytes_on_disk(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # just published
                total += Path(parent, name).stat().st_blocks * 512
    return total


def start(source: Path, destination: Path, *options: str, moment: float) -> subprocess.Popen[str]:
    """Start a run and return it once it has written this part of its bytes, or has ended."""
    journal = partial_of(destination) / "journal"
    before = journal.stat().st_mtime_ns if journal.exists() else None
    wanted = moment * sum(size for size, _ in source_state(source).values())
    process = subprocess.Popen(
        command(source, destination, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            begun = journal.stat().st_size and journal.stat().st_mtime_ns != before
            if begun and bytes_on_disk(partial_of(destination) / "checkpoint") >= wanted:
                break
        time.sleep(0.0005)
    return process


def interrupt(
    source: Path, destination: Path, *options: str, moment: float, by: int = SIGKILL
) -> int:
    """End a run by a signal and return its exit status."""
    process = start(source, destination, *options, moment=moment)
    process.send_signal(by)
    return exit_status(process)


def interrupt_late(source: Path, destination: Path, *options: str) -> Stamps:
    """Kill a run that has some files complete and some not; return the complete ones."""
    interrupt(source, destination, *options, "--num-workers", "1", moment=0.7)
    complete = journaled(destination)
    assert len(complete) > 1
    return complete


def exit_status(process: subprocess.Popen[str]) -> int:
    """Wait for a process and return its exit status, negative if a signal ended it."""
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    return process.returncode


def moments(seed: str, count: int) -> list[float]:
    """Random moments, one in each of `count` equal parts of a run."""
    generator = random.Random(seed)
    return [(i + generator.random()) / count for i in range(count)]


@pytest.mark.parametrize("by", [SIGINT, SIGTERM, SIGKILL])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--link",),
        ("--overwrite",),
        ("--fsync",),
        ("--num-workers", "1"),
        ("--num-workers", "8"),
    ],
    ids=" ".join,
)
def test_a_run_killed_again_and_again_continues_each_time(
    ctcli: Ctcli,
    source: Path,
    undisturbed: Hashes,
    place: Path,
    by: signal.Signals,
    options: tuple[str, ...],
) -> None:
    destination, untouched = place / "out", source_state(source)
    old: Hashes | None = None
    if "--overwrite" in options:
        old = file_hashes(write_checkpoint(destination, {"old.safetensors": {"a": array(3)}}))
    hits, complete = 0, Stamps()
    for moment in moments(f"{by}{options}", 3):
        code = interrupt(source, destination, *options, moment=moment, by=by)
        assert source_state(source) == untouched
        published = destination.exists() and file_hashes(destination) != old
        if published:
            assert file_hashes(destination) == undisturbed
            break
        assert code == (-SIGKILL if by == SIGKILL else 128 + by)
        assert destination.exists() == (old is not None)
        hits += partial_of(destination).exists()
        now = journaled(destination)
        assert complete.items() <= now.items(), "a complete file was written again"
        complete = now
    assert hits, "no run was in progress when it was killed"
    if not published or old is not None:
        done = ctcli("reindex", source, destination, *options, "--json")
        assert done.returncode == 0, done.stderr
        if not published:
            assert json.loads(done.stdout)["files_continued"] == len(complete)
            assert stamps(destination, list(complete)) == complete
    assert file_hashes(destination) == undisturbed
    assert not partial_of(destination).exists()
    assert source_state(source) == untouched


def test_sigkill_at_random_times_since_the_start(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, place: Path
) -> None:
    begin = time.monotonic()
    assert ctcli("reindex", source, place / "timed").returncode == 0
    duration = time.monotonic() - begin
    for i, moment in enumerate(moments("times", 6)):
        destination = place / f"out{i}"
        process = subprocess.Popen(command(source, destination), stdout=subprocess.DEVNULL)
        time.sleep(moment * duration)
        process.kill()
        process.wait()
        if not destination.exists():
            assert ctcli("reindex", source, destination).returncode == 0
        assert file_hashes(destination) == undisturbed
        shutil.rmtree(destination)


def test_repeated_ctrl_c_ends_the_run_without_a_traceback(source: Path, place: Path) -> None:
    for moment in moments("repeated", 3):
        process = start(source, place / "out", moment=moment * 0.6)
        while process.poll() is None:
            process.send_signal(SIGINT)
            time.sleep(0.002)
        assert exit_status(process) in (128 + SIGINT, -SIGINT)  # a shell shows 130 for both
        assert not (place / "out").exists()


@pytest.mark.parametrize("workers", ["1", "2", "8"])
def test_output_bytes_do_not_depend_on_the_number_of_workers(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, place: Path, workers: str
) -> None:
    done = ctcli("reindex", source, place / "out", "--num-workers", workers)
    assert done.returncode == 0, done.stderr
    assert file_hashes(place / "out") == undisturbed


def test_leftover_of_other_options_is_discarded(ctcli: Ctcli, source: Path, place: Path) -> None:
    interrupt_late(source, place / "out")
    cut = ("--max-shard-size", "40MB")
    done = ctcli("reindex", source, place / "out", *cut, "--json")
    assert json.loads(done.stdout)["files_continued"] == 0
    assert ctcli("reindex", source, place / "undisturbed", *cut).returncode == 0
    assert file_hashes(place / "out") == file_hashes(place / "undisturbed")
    assert not partial_of(place / "out").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda raw: raw.replace(b"llama", b"gemma")),
        ("model-00005-of-00008.safetensors", lambda raw: raw[:-8] + bytes(8)),
    ],
)
def test_leftover_of_a_source_that_changed_since_is_discarded(
    ctcli: Ctcli, source: Path, place: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    changing = place / "source"
    shutil.copytree(source, changing, copy_function=os.link)
    interrupt_late(changing, place / "out")
    (changing / name).unlink()
    (changing / name).write_bytes(change((source / name).read_bytes()))
    done = ctcli("reindex", changing, place / "out", "--json")
    assert json.loads(done.stdout)["files_continued"] == 0
    assert ctcli("reindex", changing, place / "undisturbed").returncode == 0
    assert file_hashes(place / "out") == file_hashes(place / "undisturbed")


def test_a_run_without_link_does_not_keep_the_links_of_one_that_was_killed(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, place: Path
) -> None:
    assert WHOLE_SHARD in interrupt_late(source, place / "out", "--link")
    linked = partial_of(place / "out") / "checkpoint" / WHOLE_SHARD
    assert linked.samefile(source / WHOLE_SHARD)
    assert ctcli("reindex", source, place / "out").returncode == 0
    assert not (place / "out" / WHOLE_SHARD).samefile(source / WHOLE_SHARD)
    assert file_hashes(place / "out") == undisturbed


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda raw: raw[: raw.rindex(b"}]")], 1),
        (lambda raw: raw + b'"model-0000', 0),
        (lambda raw: raw + b"\0" * 100, 0),
        (lambda raw: raw[:10], None),
        (lambda raw: b"\xff" + raw, None),
    ],
    ids=["last line torn", "new line torn", "zeros", "only half a key", "no text"],
)
def test_a_damaged_journal_costs_no_more_than_the_files_it_no_longer_names(
    ctcli: Ctcli,
    source: Path,
    undisturbed: Hashes,
    place: Path,
    damage: Callable[[bytes], bytes],
    lost: int | None,
) -> None:
    complete = len(interrupt_late(source, place / "out"))
    journal = partial_of(place / "out") / "journal"
    journal.write_bytes(damage(journal.read_bytes()))
    done = ctcli("reindex", source, place / "out", "--json")
    assert done.returncode == 0, done.stderr
    expected = 0 if lost is None else complete - lost
    assert json.loads(done.stdout)["files_continued"] == expected
    assert file_hashes(place / "out") == undisturbed


def test_a_journaled_file_that_was_cut_short_is_written_again(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, place: Path
) -> None:
    short, *whole = interrupt_late(source, place / "out")
    os.truncate(partial_of(place / "out") / "checkpoint" / short, 1000)
    done = ctcli("reindex", source, place / "out", "--json")
    assert json.loads(done.stdout)["files_continued"] == len(whole)
    assert file_hashes(place / "out") == undisturbed


@pytest.fixture
def between_renames(source: Path, place: Path) -> Hashes:
    """A run with --overwrite died when the old DST had gone and the new one had not come."""
    destination = place / "out"
    old = file_hashes(write_checkpoint(destination, {"old.safetensors": {"a": array(3)}}))
    interrupt_late(source, destination, "--overwrite")
    destination.rename(partial_of(destination) / "replaced")
    return old


@pytest.mark.usefixtures("between_renames")
def test_died_between_the_renames_the_same_command_finishes(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, place: Path
) -> None:
    complete = journaled(place / "out")
    assert "old.safetensors" in file_hashes(partial_of(place / "out") / "replaced")
    done = ctcli("reindex", source, place / "out", "--overwrite", "--json")
    assert json.loads(done.stdout)["files_continued"] == len(complete)
    assert file_hashes(place / "out") == undisturbed
    assert not partial_of(place / "out").exists()


def test_died_between_the_renames_the_old_dst_is_back_until_other_options_publish(
    ctcli: Ctcli, source: Path, place: Path, between_renames: Hashes
) -> None:
    options = ("--overwrite", "--max-shard-size", "40MB")
    assert interrupt(source, place / "out", *options, moment=0.4) == -SIGKILL
    assert file_hashes(place / "out") == between_renames
    assert ctcli("reindex", source, place / "out", *options).returncode == 0
    assert ctcli("reindex", source, place / "undisturbed", *options).returncode == 0
    assert file_hashes(place / "out") == file_hashes(place / "undisturbed")
    assert not partial_of(place / "out").exists()


def test_died_between_the_renames_a_run_without_overwrite_replaces_nothing(
    ctcli: Ctcli, source: Path, place: Path, between_renames: Hashes
) -> None:
    done = ctcli("reindex", source, place / "out")
    assert done.returncode == 1
    assert "--overwrite" in done.stderr
    assert file_hashes(place / "out") == between_renames


def test_died_between_the_renames_a_dry_run_changes_nothing(
    ctcli: Ctcli, source: Path, place: Path, between_renames: Hashes
) -> None:
    before = file_hashes(place)
    assert ctcli("reindex", source, place / "out", "--overwrite", "--dry-run").returncode == 0
    assert file_hashes(place) == before
    assert file_hashes(partial_of(place / "out") / "replaced") == between_renames


def test_two_runs_cannot_write_the_same_dst(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, place: Path
) -> None:
    first = start(source, place / "out", moment=0.3)
    first.send_signal(signal.SIGSTOP)
    second = ctcli("reindex", source, place / "out")
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=30)
    assert second.returncode == 1
    assert "another ctcli process is writing it" in second.stderr
    assert first.returncode == 0, errors
    assert file_hashes(place / "out") == undisturbed


def test_a_plan_that_another_run_has_overtaken_is_refused(source: Path, place: Path) -> None:
    interrupt_late(source, place / "out")
    checkpoint, _ = reindex(open_checkpoint(str(source)), ReindexOptions())
    settings = Settings(2, 10**9, overwrite=True)
    overtaken = make_plan(lay_out(checkpoint), place / "out", settings)
    assert overtaken.leftover.journal.complete
    execute(make_plan(lay_out(checkpoint), place / "out", settings), lambda _: None)
    published = file_hashes(place / "out")
    with pytest.raises(CtcliError, match="another ctcli process has just worked on it"):
        execute(overtaken, lambda _: None)
    assert file_hashes(place / "out") == published


@pytest.mark.parametrize("by", [SIGINT, SIGTERM])
def test_a_signal_before_the_command_line_is_there_ends_it_without_a_traceback(
    by: signal.Signals, ctcli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    early = tmp_path / "early"
    early.mkdir()
    # Imported in place of the real one, it sends the signal while ctcli is being loaded.
    (early / "typer.py").write_text(f"import os, signal\nos.kill(os.getpid(), {int(by)})\n")
    done = ctcli("reindex", pylm, tmp_path / "out", env={"PYTHONPATH": str(early)})
    assert done.returncode == 128 + by
    assert done.stdout == ""
    assert done.stderr.startswith("warning: interrupted")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("further", "says"), [(0, True), (1, True), (2, False)])
def test_a_second_signal_does_not_hinder_the_way_out_and_a_third_ends_it(
    further: int, says: bool
) -> None:
    program = f"""
import os, signal, sys, types

def app():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for _ in range({further}):
            os.kill(os.getpid(), signal.SIGINT)

sys.modules["ctcli.cli"] = types.SimpleNamespace(app=app)
from ctcli.process import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + SIGINT
    assert done.stderr.startswith("warning: interrupted") == says
    assert bool(done.stderr) == says
