"""Hub jobs under a tight disk, killed where it hurts, and taken up again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctcli.storage.destination import DIRECTORY
from ctcli.storage.leftover import look_for_leftover
from ctcli.storage.writer import open_partial
from tests.conftest import Ctcli
from tests.helpers.checkpoints import hashes_but_card
from tests.helpers.dying import Moment, end_at
from tests.helpers.hub import Fault, Hub
from tests.helpers.hub.killing import run_until
from tests.helpers.watching import Watch
from tests.storage.hub.test_push import MADE, QUANTIZE, TOKEN, published
from tests.storage.hub.test_stream import HEADER, REPO, SHARDS, source  # noqa: F401 (a fixture)

JOURNAL_BYTES = 100_000  # what lies on the disk beside files


@pytest.fixture
def hub(source: Path, tmp_path: Path) -> Iterator[Hub]:  # noqa: F811
    """A hub with the model of the other tests, and a large tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    (folder / "tokenizer.model").write_bytes(bytes(4_000_000))
    with Hub() as running:
        running.token = TOKEN
        running.add(REPO, folder)
        yield running


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.env(tmp_path / "home", TOKEN)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where output that goes to a hub only grows."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def least_disk(ctcli: Ctcli, arguments: tuple[str, ...], env: dict[str, str]) -> int:
    """What the refusal of a limit says that is needed."""
    refused = ctcli(*arguments, "--max-disk", "1MB", env=env)
    assert refused.returncode == 1
    _, _, found = refused.stderr.partition("--max-disk: at least ")
    return int(found.partition(" bytes")[0].replace(",", ""))


def test_links_to_streamed_shards_count_for_the_disk(
    ctcli: Ctcli, work: Path, env: dict[str, str]
) -> None:
    """The shard that is linked to goes; what is left is no smaller for having been a link."""
    arguments = ("reindex", REPO, "out", "--stream", "--link")
    least = least_disk(ctcli, arguments, env)
    done = ctcli(*arguments, "--max-disk", str(least), env=env)
    assert not done.returncode, done.stderr
    assert sum(path.stat().st_size for path in (work / "out").iterdir()) <= least


def test_files_that_are_no_shards_stay_on_the_disk_to_the_end(
    hub: Hub, ctcli: Ctcli, work: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    plain = ctcli(*QUANTIZE, REPO, tmp_path / "plain", env=env)
    assert not plain.returncode, plain.stderr
    arguments = (*QUANTIZE, REPO, f"hf://{MADE}", "--stream")
    least = least_disk(ctcli, arguments, env)
    watch = Watch(work, tmp_path / "seen")
    done = watch.run(*arguments, "--max-disk", str(least), env=env)
    assert not done.returncode, done.stderr
    assert 0 < watch.bytes <= least + JOURNAL_BYTES
    assert published(hub) == hashes_but_card(tmp_path / "plain")


def test_what_a_killed_run_left_counts_for_the_disk(
    hub: Hub, ctcli: Ctcli, work: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """Complete files, fetched shards that are not needed yet, and those of another commit."""
    arguments = (*QUANTIZE, REPO, "out", "--stream")
    least = least_disk(ctcli, arguments, env)
    died = end_at(Moment("file", 7), *arguments, env=env)
    assert died.returncode == -signal.SIGKILL, died.stderr
    streamed = work / ".out.ctcli-partial" / "source"
    commit = hub.repos[REPO].branches["main"]
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    for folder, files in ((streamed / commit, shards[-3:]), (streamed / "other", shards[:1])):
        folder.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(file, folder)
    watch = Watch(work / ".out.ctcli-partial", tmp_path / "seen", after_clean_up=True)
    done = watch.run(*arguments, "--max-disk", str(least), env=env)
    assert not done.returncode, done.stderr
    assert 0 < watch.bytes <= least + JOURNAL_BYTES, "what is not needed goes first"


def test_a_whole_shard_that_is_there_is_not_fetched_again_in_pieces(
    source: Path,  # noqa: F811
    ctcli: Ctcli,
    work: Path,
    tmp_path: Path,
) -> None:
    """The index names the first layers alone, so that little of each shard is needed."""
    folder = tmp_path / "few"
    shutil.copytree(source, folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    few = {n: s for n, s in index["weight_map"].items() if ".layers." not in n or ".0." in n}
    path.write_text(json.dumps({**index, "weight_map": few}))
    with Hub() as hub:
        commit = hub.add(REPO, folder)
        env = hub.env(tmp_path / "home")
        there = work / ".out.ctcli-partial" / "source" / commit
        there.mkdir(parents=True)
        (work / ".out.ctcli-partial" / "lock").touch()
        for name in {*few.values()}:
            shutil.copy(folder / name, there)
        done = ctcli("reindex", REPO, "out", "--stream", env=env)
        assert not done.returncode, done.stderr
        asked = {r.range for r in hub.requests(".safetensors") if r.method == "GET"}
    assert asked <= {HEADER}, "headers only"


def test_files_that_a_hub_has_do_not_stay_here(tmp_path: Path) -> None:
    """A run died between a file's arrival and its end here; another file's key is not ours."""
    out, folder = tmp_path / "out", tmp_path / ".out.ctcli-partial" / "checkpoint"
    folder.mkdir(parents=True)
    (folder.parent / "lock").touch()
    for name in ("pushed", "complete", "unknown"):
        (folder / name).write_bytes(b"four")
    entries = ["key", ["pushed", {}], ["complete", {}]]
    (folder.parent / "journal").write_text("".join(json.dumps(e) + "\n" for e in entries))
    sizes = dict.fromkeys(("pushed", "complete", "unknown"), 4)
    leftover = look_for_leftover(out, "key", sizes, {"pushed": {}}, DIRECTORY)
    with open_partial(out, "key", leftover, DIRECTORY, fsync=False, overwrite=False):
        assert [path.name for path in folder.iterdir()] == ["complete"]


def test_what_was_fetched_of_a_shard_that_is_whole_does_not_stay(tmp_path: Path) -> None:
    """The whole one is read and given up: what is beside it would count for nothing, and stay."""
    out, streamed = tmp_path / "out", tmp_path / ".out.ctcli-partial" / "source" / "commit"
    streamed.mkdir(parents=True)
    (streamed.parent.parent / "lock").touch()
    names = ("whole", "whole.part", "begun.part", "other", "other.part", "begun.pieces")
    for name in names:
        (streamed / name).write_bytes(b"four")
    leftover = look_for_leftover(out, "key", {}, {}, DIRECTORY)
    with open_partial(out, "key", leftover, DIRECTORY, fsync=False, overwrite=False) as partial:
        partial.drop_sources([streamed / "whole", streamed / "begun"])
        assert {path.name for path in streamed.iterdir()} == {"whole", "begun.part"}


def run_until_it_cleans_up(hub: Hub, arguments: tuple[str, ...], env: dict[str, str]) -> None:
    """Kill a run when it has asked the hub to delete the working branch."""
    command = [sys.executable, "-m", "ctcli", *arguments]
    status = run_until(hub, lambda request: request.method == "DELETE", command, env=env)
    assert status == -signal.SIGKILL
    hub.heal()


def test_killed_after_the_last_commit_only_clearing_up_is_left_to_do(
    hub: Hub, ctcli: Ctcli, work: Path, env: dict[str, str]
) -> None:
    """What is here is in its place before the hub forgets whose commit the last one is."""
    hub.inject(Fault("", method="DELETE", times=9, status=503))
    arguments = (*QUANTIZE, REPO, "out", "--push", MADE)
    run_until_it_cleans_up(hub, arguments, env)
    made = hashes_but_card(work / "out")
    assert published(hub) == made
    hub.forget()
    done = ctcli(*arguments, "--json", env=env)
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["bytes_written"] == 0
    assert hub.repos[MADE].branches.keys() == {"main"}
    assert not hub.bytes_received()
    assert published(hub) == made == hashes_but_card(work / "out")
    assert not list(work.glob(".*"))


def test_killed_before_the_working_branch_goes_the_same_command_ends_well(
    hub: Hub, ctcli: Ctcli, work: Path, env: dict[str, str]
) -> None:
    arguments = (*QUANTIZE, REPO, f"hf://{MADE}")
    hub.inject(Fault("", method="DELETE", times=9, status=503))
    run_until_it_cleans_up(hub, arguments, env)
    before = hub.repos[MADE].branches["main"]
    hub.forget()
    done = ctcli(*arguments, env=env)
    assert not done.returncode, done.stderr
    assert hub.repos[MADE].branches == {"main": before}
    assert not hub.bytes_received()
    assert not list(work.glob(".*"))


def test_the_result_tells_what_was_to_be_downloaded(
    ctcli: Ctcli, work: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    done = ctcli("reindex", REPO, work / "out", "--json", env=env)
    every = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert json.loads(done.stdout)["bytes_to_download"] == every + 4_000_000


@pytest.mark.parametrize(
    "fault",
    [
        Fault("info/lfs/objects/batch", times=9, status=403),
        Fault("-00005-of-00008.safetensors", path_prefix="/cdn/", times=99, status=404),
    ],
)
def test_an_error_on_the_way_ends_the_run_and_the_next_one_tells_of_each_shard_once(
    fault: Fault, hub: Hub, ctcli: Ctcli, tmp_path: Path, work: Path, env: dict[str, str]
) -> None:
    plain = ctcli(*QUANTIZE, REPO, tmp_path / "plain", env=env)
    assert not plain.returncode, plain.stderr
    arguments = (*QUANTIZE, REPO, f"hf://{MADE}", "--stream", "--log-format", "json")
    arguments = (*arguments, "--max-disk", str(least_disk(ctcli, arguments[:-2], env)))
    hub.inject(dataclasses.replace(fault))
    failed = ctcli(*arguments, env=env)
    assert failed.returncode == 1
    hub.heal()
    watch = Watch(work, tmp_path / "seen")
    done = watch.run(*arguments, env=env)
    assert not done.returncode, done.stderr
    assert 0 < watch.bytes <= int(arguments[-1]) + JOURNAL_BYTES
    assert published(hub) == hashes_but_card(tmp_path / "plain")
    logs = [[json.loads(line) for line in run.stderr.splitlines()] for run in (failed, done)]
    assert [log[-1]["event"] for log in logs] == ["failed", "done"]
    told = [(e["event"], e["name"]) for log in logs for e in log if e["event"] == "shard_pushed"]
    assert len(told) == len({*told}) == SHARDS
