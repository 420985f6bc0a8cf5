"""Killed runs: DST is whole or absent, SRC is untouched, and the same command continues."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, SIGTERM

import numpy as np
import pytest

from ctcli.engine.plan import Settings, make_plan
from ctcli.engine.run import execute
from ctcli.errors import CtcliError
from ctcli.rewrites.reindex import ReindexOptions, reindex
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import open_checkpoint
from tests.conftest import ROOT, Ctcli
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint
from tests.helpers.dying import Done, Moment, end_at, passes, stop_at
from tests.helpers.processes import HANG_SECONDS, ctcli_after, environment

LAYERS = 8
ROLES = [f"self_attn.{role}_proj" for role in "qkv"]
ROLES += [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
WHOLE_SHARD = "model-00001-of-00008.safetensors"  # the largest; stays as it is
CUT = ("--max-shard-size", "640KB")
Hashes = Mapping[str, str]
Stamps = dict[str, tuple[int, int, int]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3.5 MiB in eight shards; all but the first are cut in the middle of fused sets."""
    values = array(128, 128)
    names = [f"model.layers.{n}.{role}.weight" for n in range(LAYERS) for role in ROLES]
    shards = [[f"model.embed_tokens.part{i}" for i in range(8)]]
    shards += [names[i : i + 7] for i in range(0, len(names), 7)]
    return write_checkpoint(
        tmp_path_factory.mktemp("long") / "source",
        {
            f"model-{i:05d}-of-{len(shards):05d}.safetensors": {
                name: np.roll(values, 31 * i + j) for j, name in enumerate(shard)
            }
            for i, shard in enumerate(shards, start=1)
        },
        others={"tokenizer.json": "{}", "nested/template.txt": "text"},
    )


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> Hashes:
    """What `reindex` makes of `source` when nothing interferes."""
    destination = source.with_name("undisturbed")
    command = [sys.executable, "-m", "ctcli", "reindex", str(source), str(destination)]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_SECONDS)
    return file_hashes(destination)


def partial_of(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.ctcli-partial")


def entries(destination: Path) -> list[list[object]]:
    """What the journal notes: two values for a complete file, more for a part of one."""
    lines = (partial_of(destination) / "journal").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines[1:] if line.endswith("\n")]


def journaled(destination: Path) -> Stamps:
    """Inode and times of the files that the journal calls complete."""
    names = [str(entry[0]) for entry in entries(destination) if len(entry) == 2]
    return stamps(partial_of(destination) / "checkpoint", names)


def stamps(folder: Path, names: list[str]) -> Stamps:
    status = {name: (folder / name).stat() for name in names}
    return {name: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in status.items()}


def source_state(source: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in source.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def interrupt(moment: Moment, source: Path, destination: Path, *options: str) -> Done:
    """Run until the moment at which the run ends itself."""
    done = end_at(moment, "reindex", source, destination, *options)
    assert done.returncode == (-SIGKILL if moment.by == SIGKILL else 128 + moment.by), done.stderr
    assert "Traceback" not in done.stderr
    return done


def interrupt_late(source: Path, destination: Path, *options: str) -> Stamps:
    """Kill a run that has some files complete and some not; return the complete ones."""
    interrupt(Moment("file", 4), source, destination, *options, "--num-workers", "1")
    complete = journaled(destination)
    assert len(complete) == 4
    return complete


def moments(seed: str, passed: int, count: int) -> list[int]:
    """Random moments of a run that comes past a point so often: one in each of equal parts."""
    generator = random.Random(seed)
    return [1 + int((i + generator.random()) * passed / count) for i in range(count)]


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
    tmp_path: Path,
    by: signal.Signals,
    options: tuple[str, ...],
) -> None:
    destination, untouched = tmp_path / "out", source_state(source)
    old: Hashes | None = None
    if "--overwrite" in options:
        old = file_hashes(write_checkpoint(destination, {"old.safetensors": {"a": array(3)}}))
    complete, noted = Stamps(), 0
    for count in random.Random(f"{by}{options}").sample(range(3, 8), 3):
        interrupt(Moment("note", count, by), source, destination, *options)
        assert source_state(source) == untouched
        assert destination.exists() == (old is not None)
        assert old is None or file_hashes(destination) == old
        now, found = journaled(destination), entries(destination)
        assert complete.items() <= now.items(), "a complete file was written again"
        # With --fsync, only complete files are noted.
        assert len(found) == len(now) if "--fsync" in options else len(found) == noted + count
        complete = now
        noted = len(now) + len([e for e in found if len(e) > 2 and e[0] not in now])
    done = ctcli("reindex", source, destination, *options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["files_continued"] == len(complete)
    assert bool(result["bytes_continued"]) == (noted > len(complete))
    assert stamps(destination, list(complete)) == complete
    assert file_hashes(destination) == undisturbed
    assert not partial_of(destination).exists()
    assert source_state(source) == untouched


def test_killed_at_any_change_of_the_disk_the_same_command_finishes(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path
) -> None:
    every = passes("change", "reindex", source, tmp_path / "counted")
    for i, count in enumerate(moments("changes", every, 8)):
        destination = tmp_path / f"out{i}"
        interrupt(Moment("change", count), source, destination)
        if not destination.exists():
            assert ctcli("reindex", source, destination).returncode == 0
        assert file_hashes(destination) == undisturbed


@pytest.mark.parametrize("count", [1, 8, 15])
def test_repeated_ctrl_c_ends_the_run_without_a_traceback(
    source: Path, tmp_path: Path, count: int
) -> None:
    interrupt(Moment("note", count, SIGINT, again=True), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", ["1", "2", "8"])
def test_output_bytes_do_not_depend_on_the_number_of_workers(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path, workers: str
) -> None:
    done = ctcli("reindex", source, tmp_path / "out", "--num-workers", workers)
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "out") == undisturbed


def test_leftover_of_other_options_is_discarded(ctcli: Ctcli, source: Path, tmp_path: Path) -> None:
    interrupt_late(source, tmp_path / "out")
    done = ctcli("reindex", source, tmp_path / "out", *CUT, "--json")
    assert json.loads(done.stdout)["files_continued"] == 0
    assert ctcli("reindex", source, tmp_path / "undisturbed", *CUT).returncode == 0
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "undisturbed")
    assert not partial_of(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda raw: raw.replace(b"llama", b"gemma")),
        ("model-00005-of-00008.safetensors", lambda raw: raw[:-8] + bytes(8)),
    ],
)
def test_leftover_of_a_source_that_changed_since_is_discarded(
    ctcli: Ctcli, source: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    changing = tmp_path / "source"
    shutil.copytree(source, changing, copy_function=os.link)
    interrupt_late(changing, tmp_path / "out")
    (changing / name).unlink()
    (changing / name).write_bytes(change((source / name).read_bytes()))
    done = ctcli("reindex", changing, tmp_path / "out", "--json")
    assert json.loads(done.stdout)["files_continued"] == 0
    assert ctcli("reindex", changing, tmp_path / "undisturbed").returncode == 0
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "undisturbed")


def test_a_run_without_link_does_not_keep_the_links_of_one_that_was_killed(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path
) -> None:
    assert WHOLE_SHARD in interrupt_late(source, tmp_path / "out", "--link")
    linked = partial_of(tmp_path / "out") / "checkpoint" / WHOLE_SHARD
    assert linked.samefile(source / WHOLE_SHARD)
    assert ctcli("reindex", source, tmp_path / "out").returncode == 0
    assert not (tmp_path / "out" / WHOLE_SHARD).samefile(source / WHOLE_SHARD)
    assert file_hashes(tmp_path / "out") == undisturbed


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
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    lost: int | None,
) -> None:
    complete = len(interrupt_late(source, tmp_path / "out"))
    journal = partial_of(tmp_path / "out") / "journal"
    journal.write_bytes(damage(journal.read_bytes()))
    done = ctcli("reindex", source, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    expected = 0 if lost is None else complete - lost
    assert json.loads(done.stdout)["files_continued"] == expected
    assert file_hashes(tmp_path / "out") == undisturbed


def test_a_journaled_file_that_was_cut_short_is_written_again(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path
) -> None:
    short, *whole = interrupt_late(source, tmp_path / "out")
    os.truncate(partial_of(tmp_path / "out") / "checkpoint" / short, 1000)
    done = ctcli("reindex", source, tmp_path / "out", "--json")
    assert json.loads(done.stdout)["files_continued"] == len(whole)
    assert file_hashes(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("by", [SIGINT, SIGTERM])
@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--fsync",)], ids=str)
def test_a_signal_once_dst_is_published_changes_nothing_any_more(
    source: Path,
    undisturbed: Hashes,
    tmp_path: Path,
    by: signal.Signals,
    options: tuple[str, ...],
) -> None:
    destination = tmp_path / "out"
    if "--overwrite" in options:
        write_checkpoint(destination, {"old.safetensors": {"a": array(3)}})
    done = end_at(Moment("published", 1, by), "reindex", source, destination, *options)
    assert done.returncode == 0, done.stderr
    assert "interrupted" not in done.stderr
    assert done.stdout.startswith("reindex: ")
    assert file_hashes(destination) == undisturbed
    assert not partial_of(destination).exists()


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=str)
def test_killed_once_dst_is_published_the_same_command_clears_up(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path, options: tuple[str, ...]
) -> None:
    destination = tmp_path / "out"
    if options:
        write_checkpoint(destination, {"old.safetensors": {"a": array(3)}})
    interrupt(Moment("published", 1), source, destination, *options)
    made = file_hashes(destination)
    assert made == undisturbed
    assert partial_of(destination).exists()
    assert "not finished" not in ctcli("verify", destination).stdout
    done = ctcli("reindex", source, destination, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_written"] == 0
    assert file_hashes(destination) == made
    assert not partial_of(destination).exists()


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=str)
def test_what_was_replaced_does_not_come_back_when_dst_is_moved_away(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path, options: tuple[str, ...]
) -> None:
    destination = tmp_path / "out"
    if options:
        shutil.copytree(source, destination)  # files of the same names and sizes
        (destination / "tokenizer.json").write_text("old")
    interrupt(Moment("published", 1), source, destination, *options)
    destination.rename(tmp_path / "moved")
    dry = ctcli("reindex", source, destination, *options, "--dry-run", "--json")
    assert json.loads(dry.stdout)["files_continued"] == 0
    done = ctcli("reindex", source, destination, *options)
    assert done.returncode == 0, done.stderr
    assert "put back" not in done.stderr
    assert file_hashes(destination) == file_hashes(tmp_path / "moved") == undisturbed
    assert not partial_of(destination).exists()


def test_killed_once_dst_is_published_other_options_do_not_replace_it(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    interrupt(Moment("published", 1), source, destination)
    done = ctcli("reindex", source, destination, *CUT)
    assert done.returncode == 1
    assert "DST exists and is not empty" in done.stderr
    assert file_hashes(destination) == undisturbed


@pytest.mark.parametrize("error", ["ENOSYS", "EINVAL"])
@pytest.mark.parametrize("fails", [False, True])
def test_where_folders_cannot_change_places_dst_is_put_back_if_its_successor_cannot_come(
    source: Path, undisturbed: Hashes, tmp_path: Path, error: str, fails: bool
) -> None:
    destination = tmp_path / "out"
    old = file_hashes(write_checkpoint(destination, {"old.safetensors": {"a": array(3)}}))
    prepare = f"""
import errno, os
from ctcli.storage import exchange
exchange.renameat2 = lambda one, other: errno.{error}
rename = os.rename
def failing(one, other):
    if {fails} and str(one).endswith("checkpoint"):
        raise OSError(errno.EIO, "broken")
    rename(one, other)
os.rename = failing
"""
    command = ctcli_after(prepare, "reindex", source, destination, "--overwrite")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == fails, done.stderr
    assert file_hashes(destination) == (old if fails else undisturbed)
    if fails:
        assert done.stderr.startswith(f"error: {destination}: publishing failed: broken.")


def test_dst_is_never_absent_while_it_is_replaced(source: Path, tmp_path: Path) -> None:
    """The folders change places in one system call: no rename touches DST."""
    destination = tmp_path / "out"
    write_checkpoint(destination, {"old.safetensors": {"a": array(3)}})
    prepare = f"""
import os
rename = os.rename
def checked(one, other):
    assert {str(destination)!r} not in (str(one), str(other))
    rename(one, other)
os.rename = checked
"""
    command = ctcli_after(prepare, "reindex", source, destination, "--overwrite")
    subprocess.run(command, capture_output=True, check=True, env=environment())


@pytest.fixture
def between_renames(source: Path, tmp_path: Path) -> Hashes:
    """A run with --overwrite died when the old DST had gone and the new one had not come."""
    destination = tmp_path / "out"
    old = file_hashes(write_checkpoint(destination, {"old.safetensors": {"a": array(3)}}))
    interrupt_late(source, destination, "--overwrite")
    destination.rename(partial_of(destination) / "replaced")
    return old


def assert_put_back(done: Done) -> None:
    assert "a run that was to replace it died when it was out of the way" in done.stderr


@pytest.mark.usefixtures("between_renames")
def test_died_between_the_renames_the_same_command_finishes(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path
) -> None:
    complete = journaled(tmp_path / "out")
    assert "old.safetensors" in file_hashes(partial_of(tmp_path / "out") / "replaced")
    done = ctcli("reindex", source, tmp_path / "out", "--overwrite", "--json")
    assert_put_back(done)
    assert json.loads(done.stdout)["files_continued"] == len(complete)
    assert file_hashes(tmp_path / "out") == undisturbed
    assert not partial_of(tmp_path / "out").exists()


def test_died_between_the_renames_the_old_dst_is_back_until_other_options_publish(
    ctcli: Ctcli, source: Path, tmp_path: Path, between_renames: Hashes
) -> None:
    options = ("--overwrite", *CUT)
    interrupt(Moment("note", 8), source, tmp_path / "out", *options)
    assert file_hashes(tmp_path / "out") == between_renames
    assert ctcli("reindex", source, tmp_path / "out", *options).returncode == 0
    assert ctcli("reindex", source, tmp_path / "undisturbed", *options).returncode == 0
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "undisturbed")
    assert not partial_of(tmp_path / "out").exists()


def test_died_between_the_renames_a_run_without_overwrite_replaces_nothing(
    ctcli: Ctcli, source: Path, tmp_path: Path, between_renames: Hashes
) -> None:
    done = ctcli("reindex", source, tmp_path / "out")
    assert done.returncode == 1
    assert_put_back(done)
    assert "--overwrite" in done.stderr
    assert file_hashes(tmp_path / "out") == between_renames


def test_died_between_the_renames_a_dry_run_changes_nothing(
    ctcli: Ctcli, source: Path, tmp_path: Path, between_renames: Hashes
) -> None:
    before = file_hashes(tmp_path)
    assert ctcli("reindex", source, tmp_path / "out", "--overwrite", "--dry-run").returncode == 0
    assert file_hashes(tmp_path) == before
    assert file_hashes(partial_of(tmp_path / "out") / "replaced") == between_renames


def test_two_runs_cannot_write_the_same_dst(
    ctcli: Ctcli, source: Path, undisturbed: Hashes, tmp_path: Path
) -> None:
    first = stop_at(Moment("job", 3, SIGSTOP), "reindex", source, tmp_path / "out")
    second = ctcli("reindex", source, tmp_path / "out")
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=HANG_SECONDS)
    assert second.returncode == 1
    assert "another ctcli process is writing it" in second.stderr
    assert first.returncode == 0, errors
    assert file_hashes(tmp_path / "out") == undisturbed


def test_a_plan_that_another_run_has_overtaken_is_refused(source: Path, tmp_path: Path) -> None:
    interrupt_late(source, tmp_path / "out")
    checkpoint, _ = reindex(open_checkpoint(str(source)), ReindexOptions())
    settings = Settings(2, 10**9, overwrite=True)
    overtaken = make_plan(lay_out(checkpoint), tmp_path / "out", settings)
    assert overtaken.leftover.journal.complete
    execute(make_plan(lay_out(checkpoint), tmp_path / "out", settings), lambda _: None)
    published = file_hashes(tmp_path / "out")
    with pytest.raises(CtcliError, match="another ctcli process has just worked on it"):
        execute(overtaken, lambda _: None)
    assert file_hashes(tmp_path / "out") == published


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
    assert done.stderr == "warning: interrupted; nothing was changed.\n"
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_only_reads_is_interrupted_without_a_word_of_dst(
    command: str, ctcli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    # Where Python looks at its start, what sends the signal once weights are opened.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def hook(event, words):\n"
        "    if event == 'open' and str(words[0]).endswith('.safetensors'):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.addaudithook(hook)\n"
    )
    done = ctcli(command, pylm, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (done.returncode, done.stderr) == (128 + SIGTERM, "warning: interrupted.\n")


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

sys.modules["ctcli.cli"] = types.SimpleNamespace(main=app)
from ctcli.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + SIGINT
    assert done.stderr.startswith("warning: interrupted") == says
    assert bool(done.stderr) == says
