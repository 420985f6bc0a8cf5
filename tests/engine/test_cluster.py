"""`--cluster`: real schedulers, and workers some of which die, stall or are not as they should."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import numpy as np
import pytest
import torch

from ctcli.engine.work import Work
from tests.conftest import Ctcli
from tests.engine.test_parts import COMMANDS, QUANTIZE, partial_of
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint
from tests.helpers.clusters import Cluster, wait_stopped
from tests.helpers.frozen_sources import make_sources
from tests.helpers.processes import HANG_SECONDS, ctcli_after, environment
from tests.helpers.verifying import edit, flip

Done = subprocess.CompletedProcess[str]
Quantize = Callable[..., Done]
DIE = "from tests.helpers import dying; dying.live_until(dying.Moment('job', {}, {}))"
DIE_LOOKING = f"dying.live_until(dying.Moment('look', 2, {int(SIGKILL)}))"
SLOW = "from tests.helpers import dying; import time; dying.POINTS['job'](lambda: time.sleep(0.3))"
HELD = """
import time
from pathlib import Path
from tests.helpers import dying

def wait():
    while not Path({!r}).exists():
        time.sleep(0.05)

dying.POINTS["job"](wait)
"""
IMPATIENT = "from ctcli.engine import cluster; cluster._SILENT_SECONDS = 2"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pylm: Path) -> Mapping[str, Path]:
    found = make_sources(tmp_path_factory.mktemp("sources"))
    return {**found, "awq": pylm.parent / "sources" / "awq-gemm" / "checkpoint"}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and four workers to which nothing happens."""
    with Cluster(tmp_path_factory.mktemp("four")) as cluster:
        for _ in range(4):
            cluster.add()
        yield cluster


@pytest.fixture(scope="module")
def _sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and one worker to which nothing happens."""
    with Cluster(tmp_path_factory.mktemp("sound")) as cluster:
        cluster.add()
        yield cluster


@pytest.fixture
def sound(_sound: Cluster) -> Iterator[Cluster]:
    """The same; workers that a test adds end with it."""
    with _sound.further() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def _bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler without workers."""
    with Cluster(tmp_path_factory.mktemp("bare")) as cluster:
        yield cluster


@pytest.fixture
def bare(_bare: Cluster) -> Iterator[Cluster]:
    """The same; workers that a test adds end with it."""
    with _bare.further() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(pylm: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What one process makes of the bundled checkpoint."""
    destination = tmp_path_factory.mktemp("whole") / "out"
    words = [sys.executable, "-m", "ctcli", "quantize", str(pylm), str(destination), *QUANTIZE]
    subprocess.run(words, check=True, capture_output=True, timeout=HANG_SECONDS)
    return file_hashes(destination)


def begin(
    cluster: Cluster, source: Path, destination: Path, *options: str, preparation: str = ""
) -> subprocess.Popen[str]:
    """Start `ctcli quantize` on a cluster."""
    where = ("--cluster", str(cluster.file), *options)
    return subprocess.Popen(
        ctcli_after(preparation, "quantize", source, destination, *QUANTIZE, *where),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.fixture
def quantize(cli: Ctcli) -> Quantize:
    """Runs `ctcli quantize` on a cluster, in this process."""

    def run(cluster: Cluster, source: Path, destination: Path, *options: str) -> Done:
        cluster.wait()
        where = ("--cluster", cluster.address)
        done = cli("quantize", source, destination, *QUANTIZE, *where, *options)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def assert_made(done: Done, destination: Path, whole: Mapping[str, str]) -> None:
    assert done.returncode == 0, done.stderr
    assert file_hashes(destination) == whole
    assert not partial_of(destination).exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_four_workers_make_what_one_process_makes(
    name: str, cli: Ctcli, four: Cluster, sources: Mapping[str, Path], tmp_path: Path
) -> None:
    before, after = COMMANDS[name]
    words = [str(sources.get(word[1:], word)) for word in before.split()]
    out = "out.bin" if name == "export-bin" else "out"
    for word in words[1:]:
        if (sources["here"] / word).is_file():
            words[words.index(word)] = str(sources["here"] / word)
    alone = cli(*words, tmp_path / "alone" / out, *after.split())
    assert alone.returncode == 0, alone.stderr
    where = ("--cluster", four.address)
    done = cli(*words, tmp_path / "many" / out, *after.split(), *where)
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "many") == file_hashes(tmp_path / "alone")
    by_one, by_many = (
        [line for line in each.stdout.splitlines() if "written" not in line]
        for each in (alone, done)
    )
    assert [line.replace("/many/", "/alone/") for line in by_many[1:]] == by_one[1:]
    assert [path.name for path in (tmp_path / "many").iterdir()] != []
    assert not partial_of(tmp_path / "many" / out).exists()


def test_any_number_of_workers(
    sound: Cluster,
    four: Cluster,
    quantize: Quantize,
    pylm: Path,
    whole: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """Of four, another test tells."""
    assert_made(quantize(sound, pylm, tmp_path / "1"), tmp_path / "1", whole)
    with four.further() as seven:
        for _ in range(3):
            seven.add()
        assert_made(quantize(seven, pylm, tmp_path / "7"), tmp_path / "7", whole)


def test_local_processes(
    ctcli: Ctcli, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    words = ("quantize", pylm, tmp_path / "out", *QUANTIZE, "--cluster", "local:2")
    assert_made(ctcli(*words), tmp_path / "out", whole)
    sound = ctcli("verify", tmp_path / "out", "--against", pylm, "--cluster", "local:2", "-q")
    assert (sound.returncode, sound.stderr) == (0, "")


def test_events_name_the_workers(
    four: Cluster, quantize: Quantize, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    done = quantize(four, pylm, tmp_path / "out", "--log-format", "json")
    assert_made(done, tmp_path / "out", whole)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["started", "done"]
    written = {event["name"]: event for event in events if event["event"] == "shard_written"}
    assert sorted(written) == sorted(name for name in whole if name.endswith(".safetensors"))
    assert all(event["worker"].startswith("tcp://") for event in written.values())
    assert len({event["worker"] for event in written.values()}) > 1


def test_workers_tell_how_far_they_are_with_learning(
    four: Cluster, cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    words = ("rotate", pylm, tmp_path / "out", "--transform-type", "learned", "--steps", "2")
    where = ("--cluster", four.address)
    done = cli(*words, "--rotations", "R1", *where, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    learning = [event for event in events if event["event"] == "preparing"]
    assert {event["message"] for event in learning} == {
        *("learning rotations, 50 %", "learning rotations, 100 %")
    }
    writers = {event["worker"] for event in events if event["event"] == "shard_written"}
    assert writers <= {event["worker"] for event in learning}


@pytest.mark.parametrize(("by", "count"), [(SIGKILL, 1), (SIGTERM, 4)])
def test_a_worker_that_dies_is_made_up_for(
    by: signal.Signals,
    count: int,
    sound: Cluster,
    quantize: Quantize,
    pylm: Path,
    whole: Mapping[str, str],
    tmp_path: Path,
) -> None:
    dying = sound.add(DIE.format(count, int(by)))
    done = quantize(sound, pylm, tmp_path / "out")
    dying.wait(timeout=HANG_SECONDS)
    assert_made(done, tmp_path / "out", whole)
    assert "was lost" in done.stderr


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "no worker is left"), (3, "2 workers were lost while they had it")],
)
def test_workers_that_all_die_end_the_job(
    count: int,
    expected: str,
    bare: Cluster,
    cli: Ctcli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A shard and the small files are two tasks, so that of three deaths one takes two."""
    source = write_checkpoint(tmp_path / "source", {"model.safetensors": {"a": array(64, 64)}})
    monkeypatch.setattr("ctcli.engine.cluster._WORKER_SECONDS", 1.0)
    monkeypatch.setattr("ctcli.engine.cluster._MOST_LOSSES", 1)
    for _ in range(count):
        bare.add(DIE.format(1, int(SIGKILL)))
    bare.wait()
    done = cli("reindex", source, tmp_path / "out", "--cluster", bare.address)
    assert done.returncode == 1
    assert expected in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_worker_that_stands_still_is_replaced_and_changes_nothing_later(
    sound: Cluster, quantize: Quantize, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    frozen = sound.add(DIE.format(2, int(SIGSTOP)))
    sound.wait()
    running = begin(sound, pylm, tmp_path / "out", preparation=IMPATIENT)
    wait_stopped(frozen)
    _, stderr = running.communicate(timeout=HANG_SECONDS)
    assert running.returncode == 0, stderr
    assert "does not answer; another takes its files" in stderr
    assert file_hashes(tmp_path / "out") == whole
    frozen.send_signal(SIGCONT)
    # It is asked whether it can do a share once it has ended what it was about to do.
    assert_made(quantize(sound, pylm, tmp_path / "next"), tmp_path / "next", whole)
    assert file_hashes(tmp_path / "out") == whole
    assert not partial_of(tmp_path / "out").exists()


def test_a_worker_that_stands_still_from_the_start_is_not_waited_for(
    sound: Cluster,
    quantize: Quantize,
    monkeypatch: pytest.MonkeyPatch,
    pylm: Path,
    whole: Mapping[str, str],
    tmp_path: Path,
) -> None:
    frozen = sound.add()
    sound.wait()
    frozen.send_signal(SIGSTOP)
    monkeypatch.setattr("ctcli.engine.cluster._SILENT_SECONDS", 1.0)
    done = quantize(sound, pylm, tmp_path / "out")
    assert_made(done, tmp_path / "out", whole)
    assert "does not answer; it gets files once it does" in done.stderr


def test_a_worker_that_is_added_late_helps(
    bare: Cluster, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    others_work = tmp_path / "others work"
    bare.add(HELD.format(str(others_work)))
    running = begin(bare, pylm, tmp_path / "out", "--log-format", "json")
    assert running.stderr
    assert json.loads(running.stderr.readline())["event"] == "started"
    bare.add()
    workers = set()
    for line in running.stderr:
        if worker := json.loads(line).get("worker"):
            workers.add(worker)
            others_work.touch()
    running.communicate(timeout=HANG_SECONDS)
    assert running.returncode == 0
    assert len(workers) == 2
    assert file_hashes(tmp_path / "out") == whole


def test_the_scheduler_dies_and_the_same_command_continues(
    sound: Cluster, quantize: Quantize, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        kill = f"import os; os.kill({cluster.scheduler.pid}, 9)"
        cluster.add(
            f"from tests.helpers import dying\ndef passed(): {kill}\ndying.POINTS['file'](passed)"
        )
        done = quantize(cluster, pylm, tmp_path / "out")
    assert done.returncode == 1
    assert "the scheduler does not answer" in done.stderr
    assert "next: Run the same command again: it continues." in done.stderr
    assert not (tmp_path / "out").exists()
    done = quantize(sound, pylm, tmp_path / "out", "--json")
    assert_made(done, tmp_path / "out", whole)
    assert json.loads(done.stdout)["files_continued"] >= 1


def test_the_client_ends_and_the_same_command_continues(
    bare: Cluster, quantize: Quantize, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    for _ in range(2):
        bare.add(SLOW)
    for by in (SIGKILL, SIGINT):
        destination = tmp_path / by.name
        running = begin(bare, pylm, destination, "--log-format", "json")
        assert running.stderr
        for line in running.stderr:
            if json.loads(line)["event"] == "shard_written":
                break
        running.send_signal(by)
        _, stderr = running.communicate(timeout=HANG_SECONDS)
        assert running.returncode == (-SIGKILL if by == SIGKILL else 128 + by), stderr
        assert not destination.exists()
        # The workers are free again within seconds, not once they have made their files.
        done = quantize(bare, pylm, destination, "--json")
        assert_made(done, destination, whole)
        assert json.loads(done.stdout)["files_continued"] >= 1


def test_a_worker_of_another_version_is_named(
    sound: Cluster, quantize: Quantize, pylm: Path, tmp_path: Path
) -> None:
    sound.add("import ctcli; ctcli.__version__ = '99.1'")
    done = quantize(sound, pylm, tmp_path / "out")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "it has ctcli 99.1, and this is ctcli " in line
    assert line.startswith("error: worker tcp://")
    assert not any(tmp_path.iterdir())


def test_what_is_wrong_with_each_worker_is_named(
    sound: Cluster, quantize: Quantize, pylm: Path, tmp_path: Path
) -> None:
    """They see another SRC, no DST, cannot write there, or have too little memory."""
    source, other, elsewhere, place = (
        tmp_path / name for name in ("source", "other", "elsewhere", "place")
    )
    shutil.copytree(pylm, source)
    shutil.copytree(pylm, other)
    (other / "model-00002-of-00006.safetensors").touch()
    for folder in (place, elsewhere):
        folder.mkdir()
    mounts = (
        f"mount --bind {other} {source}",
        f"mount --bind {elsewhere} {place}",
        f"mount --bind {place} {place} && mount -o remount,ro,bind {place} {place}",
    )
    for mount in mounts:
        sound.add(within=("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"))
    sound.add("", "--memory-limit", "1GB")
    done = quantize(sound, source, place / "out")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: worker tcp://")]
    expected = (
        "another size or time of change of",
        "it does not see this folder of the others",
        "Read-only file system",
        "it may use 1,000,000,000 bytes of memory, and needs",
    )
    assert len(errors) == len(expected)
    for problem in expected:
        assert any(problem in line for line in errors)
    assert "--memory-limit 0" in done.stderr
    assert not any(place.iterdir())


def test_a_full_disk_on_one_worker_is_named_and_the_others_go_on(
    sound: Cluster, quantize: Quantize, pylm: Path, whole: Mapping[str, str], tmp_path: Path
) -> None:
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000));"
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    sound.add(limit)
    done = quantize(sound, pylm, tmp_path / "out")
    assert_made(done, tmp_path / "out", whole)
    assert "the disk (or a quota or file-size limit) is full" in done.stderr


def test_a_weight_that_is_not_finite_ends_the_job_as_on_one_machine(
    cli: Ctcli, four: Cluster, tmp_path: Path
) -> None:
    weights = {f"model.layers.{n}.mlp.up_proj.weight": array(64, 128, seed=n) for n in range(6)}
    weights["model.layers.3.mlp.up_proj.weight"][5, 7] = np.nan
    shards = {
        f"model-{n + 1:05d}-of-00006.safetensors": {name: weights[name]}
        for n, name in enumerate(weights)
    }
    source = write_checkpoint(tmp_path / "source", shards)
    words = ("quantize", source, tmp_path / "out", "--scheme", "W4A16")
    alone = cli(*words)
    assert alone.returncode == 1
    shutil.rmtree(partial_of(tmp_path / "out"))
    done = cli(*words, "--cluster", four.address)
    assert (done.returncode, done.stderr) == (1, alone.stderr)
    assert not (tmp_path / "out").exists()


def verified(done: Done) -> tuple[int, dict[str, Any]]:
    """The exit status of `verify`, and what it says for programs, but for the time."""
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {**json.loads(done.stdout), "seconds": 0}


@pytest.fixture
def faulty(cli: Ctcli, pylm: Path, tmp_path: Path) -> Path:
    """A quantized checkpoint in which a scale, a norm and a code are not as they should be."""
    folder = tmp_path / "faulty"
    assert cli("quantize", pylm, folder, *QUANTIZE).returncode == 0
    up, down = (f"model.layers.{n}.mlp.{name}_proj" for n, name in ((0, "up"), (3, "down")))
    edit(f"{up}.weight_scale", torch.Tensor.zero_)(folder)
    flip("model.norm.weight", 3, 5)(folder)
    flip(f"{down}.weight_scale", 0, 14)(folder)
    return folder


def test_workers_find_what_one_process_finds(
    four: Cluster, cli: Ctcli, pylm: Path, faulty: Path, tmp_path: Path
) -> None:
    words = ("verify", faulty, "--against", pylm, "--max-error", "0.1", "--json", "--sha256")
    assert cli(*words, tmp_path / "hashes").returncode == 3
    alone = cli("verify", pylm, "--json", "--sha256", tmp_path / "alone")
    assert alone.returncode == 0
    where = ("--cluster", four.address)
    sound = cli("verify", pylm, "--json", "--sha256", tmp_path / "many", *where)
    assert verified(sound)[0] == 0
    assert (tmp_path / "many").read_text() == (tmp_path / "alone").read_text()
    # Hashes of another checkpoint are compared, and are differences, too.
    one, many = (verified(cli(*words, tmp_path / "alone", *further)) for further in ((), where))
    assert one == many
    kinds = {found["kind"] for found in one[1]["differences"]}
    assert one[0] == 3
    assert kinds == {"value", "error", "hash"}


def test_a_worker_that_dies_while_it_verifies_is_made_up_for(
    sound: Cluster, cli: Ctcli, pylm: Path, faulty: Path
) -> None:
    words = ("verify", faulty, "--against", pylm, "--json")
    dying = sound.add("from tests.helpers import dying\n" + DIE_LOOKING)
    sound.wait()
    done = cli(*words, "--cluster", sound.address)
    dying.wait(timeout=HANG_SECONDS)
    assert "was lost" in done.stderr
    assert verified(done) == verified(cli(*words))


def test_a_worker_that_would_verify_something_else_is_named(
    sound: Cluster, cli: Ctcli, pylm: Path, faulty: Path, tmp_path: Path
) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    shutil.copytree(pylm, source)
    shutil.copytree(faulty, other)
    (other / "config.json").touch()
    mounts = (f"mount --bind {other} {faulty}", f"mount -t tmpfs none {source}")
    for mount in mounts:
        sound.add(within=("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"))
    sound.wait()
    done = cli("verify", faulty, "--against", source, "--cluster", sound.address)
    assert done.returncode == 1
    told = " ".join(line for line in done.stderr.splitlines() if "error: worker tcp://" in line)
    assert told.count("error: ") == len(mounts)
    assert "DST: another size or time of change of config.json." in told
    assert f"{source}: no safetensors files in it." in told


def test_no_token_travels(pylm: Path, whole: Mapping[str, str], tmp_path: Path) -> None:
    token = "hf_" + "Zq7" * 11 + "K"
    env = {"HF_TOKEN": token}
    with Cluster(tmp_path / "cluster", env) as cluster:
        cluster.add()
        words = ("quantize", pylm, tmp_path / "out", *QUANTIZE, "--cluster", cluster.address)
        spy = "from distributed import Client; submit = Client.submit; import pickle, os\n"
        spy += f"def spied(self, *a, **k):\n open({str(tmp_path / 'sent')!r}, 'ab').write("
        spy += "pickle.dumps((a, k)))\n return submit(self, *a, **k)\nClient.submit = spied"
        done = subprocess.run(
            ctcli_after(spy, *words),
            capture_output=True,
            text=True,
            check=False,
            env=environment(env),
        )
        assert_made(done, tmp_path / "out", whole)
        sent = (tmp_path / "sent").read_bytes()
        assert b"model-00001-of-00006.safetensors" in sent
        assert token.encode() not in sent
        assert token not in cluster.log()
    assert token.encode() not in pickle.dumps(Work("k", "s", None, "d", (), {}))


def test_without_dask_the_message_names_the_extra(
    cli: Ctcli, monkeypatch: pytest.MonkeyPatch, pylm: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    for options in ((), ("--dry-run",)):
        done = cli("reindex", pylm, tmp_path / "out", "--cluster", "local:2", *options)
        assert done.returncode == 1
        assert "pip install 'ctcli[dask]'" in done.stderr
    assert not any(tmp_path.iterdir())


def test_no_scheduler_and_wrong_words(
    cli: Ctcli, monkeypatch: pytest.MonkeyPatch, pylm: Path, tmp_path: Path
) -> None:
    for text in ("local:0", "local:", "local:x", "host", "nowhere.json"):
        done = cli("reindex", pylm, tmp_path / "out", "--cluster", text)
        assert done.returncode == 2, text
        assert "give tcp://HOST:PORT" in done.stderr
    both = cli("reindex", pylm, tmp_path / "out", "--cluster", "local:2", "--part", "1/2")
    assert both.returncode == 2
    monkeypatch.setattr("ctcli.engine.cluster._CONNECT_SECONDS", 0.5)
    done = cli("reindex", pylm, tmp_path / "out", "--cluster", "tcp://127.0.0.1:9")
    assert done.returncode == 1
    assert "no scheduler answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())
