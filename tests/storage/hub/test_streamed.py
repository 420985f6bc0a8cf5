"""Files of a hub: checked, tried again, streamed through a folder; the real client fetches them."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctcli.errors import CtcliError
from ctcli.storage.hub import retries
from ctcli.storage.hub.files import HubFile, hub_files, list_hub
from ctcli.storage.hub.streamed import StreamedFile, stream_files
from ctcli.units import Advance
from tests.helpers.hub import Fault, Hub
from tests.helpers.hub.client import lead

REPO = "org/model"
WEIGHTS = "model.safetensors"
SIZE = 3_000_000
DATA = random.Random(0).randbytes(SIZE)
TOKEN = "hf_" + "Zy9" * 11 + "Q"
CDN = "/cdn/"
FETCH = """
import sys
from pathlib import Path
from ctcli.storage.hub.files import hub_files
from ctcli.storage.hub.streamed import StreamedFile
file = hub_files(sys.argv[1], None)[0][sys.argv[2]]
StreamedFile(file, Path(sys.argv[3])).fetch(lambda nbytes: None)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / WEIGHTS).write_bytes(DATA)
    with Hub() as running:
        running.add(REPO, source)
        lead(monkeypatch, running, tmp_path / "home", None)
        yield running


def weights() -> HubFile:
    return hub_files(REPO, None)[0][WEIGHTS]


@pytest.fixture
def streamed(hub: Hub, tmp_path: Path) -> StreamedFile:
    file = StreamedFile(weights(), tmp_path / "scratch")
    hub.forget()
    return file


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def ignore(nbytes: int) -> None:
    pass


def threads_in(function: Callable[..., object]) -> int:
    """How many threads are at a line of the function itself, not of what it calls."""
    frames = sys._current_frames().values()
    return sum(frame.f_code is function.__code__ for frame in frames)


def test_a_file_comes_into_the_folder_is_read_there_and_goes(
    hub: Hub, streamed: StreamedFile, tmp_path: Path
) -> None:
    seen: list[int] = []
    assert streamed.fetch_bytes == SIZE
    assert streamed.read(10, 20) == DATA[10:30]
    path = streamed.fetch(seen.append)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(tmp_path / "scratch")
    assert sum(seen) == SIZE
    assert (streamed.fetch_bytes, streamed.disk_bytes) == (0, SIZE)
    assert streamed.read(SIZE - 5, 100) == DATA[-5:]
    assert streamed.fetch(seen.append) == path
    assert hub.bytes_sent(WEIGHTS) < SIZE + 2000
    assert not list((tmp_path / "home").rglob(f"*{WEIGHTS}*"))
    streamed.release()
    assert left_in(tmp_path / "scratch") == []
    assert streamed.fetch_bytes == SIZE
    assert streamed.fetch(ignore).read_bytes() == DATA
    streamed.release()
    streamed.release()


def test_only_weights_of_a_hub_are_streamed(hub: Hub, tmp_path: Path) -> None:
    files, commit = list_hub(REPO, None)
    found = stream_files(files.values(), tmp_path)
    assert found.keys() == files.keys()
    assert {name for name, f in found.items() if isinstance(f, StreamedFile)} == {WEIGHTS}
    assert found[WEIGHTS].stamp == files[WEIGHTS].stamp
    assert commit == hub.repos[REPO].branches["main"]


def test_threads_wait_for_one_download(hub: Hub, streamed: StreamedFile) -> None:
    comes = threading.Event()
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, hold=comes, held_at=SIZE // 2))
    with ThreadPoolExecutor(8) as pool:
        fetching = [pool.submit(streamed.fetch, ignore) for _ in range(8)]
        while threads_in(StreamedFile.fetch) < 7:
            time.sleep(0.01)
        comes.set()
        assert {future.result() for future in fetching} == {streamed.path}
    assert len([r for r in hub.requests(WEIGHTS) if r.path.startswith(CDN)]) == 1


def test_a_break_is_continued_by_a_range(hub: Hub, streamed: StreamedFile) -> None:
    hub.inject(*(Fault(WEIGHTS, path_prefix=CDN, after_bytes=n) for n in (1_000_000, 0, 70_000)))
    seen: list[int] = []
    assert streamed.fetch(seen.append).read_bytes() == DATA
    assert sum(seen) == SIZE
    starts = [r.range for r in hub.requests(WEIGHTS) if r.path.startswith(CDN)]
    assert starts[0] == f"bytes=0-{SIZE - 1}"
    assert len(set(starts)) == 3  # the second answer broke off before its first byte
    assert len(starts) == 4
    assert hub.bytes_sent(WEIGHTS) < SIZE + 1_100_000  # a block that was not whole came again


def test_many_breaks_are_no_reason_to_give_up_as_long_as_something_comes(
    hub: Hub, streamed: StreamedFile
) -> None:
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, after_bytes=1_100_000, times=2))
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, after_bytes=0, times=retries.TRIES - 2))
    assert streamed.fetch(ignore).read_bytes() == DATA


def test_a_server_that_ignores_ranges_spoils_nothing(hub: Hub, streamed: StreamedFile) -> None:
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, after_bytes=2_000_000))
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, ignores_range=True, times=3))
    assert streamed.read(2_500_000, 1000) == DATA[2_500_000:2_501_000]
    assert streamed.fetch(ignore).read_bytes() == DATA


def test_what_a_killed_process_fetched_is_not_fetched_again(
    hub: Hub, streamed: StreamedFile, tmp_path: Path
) -> None:
    goes_on = threading.Event()
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, hold=goes_on, held_at=1_500_000))
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, REPO, WEIGHTS, str(streamed.folder)],
        env={**os.environ, **hub.env(tmp_path / "home")},
    )
    while streamed.disk_bytes < 1_000_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    goes_on.set()
    there = streamed.disk_bytes
    assert 1_000_000 <= there < SIZE
    assert streamed.fetch_bytes == SIZE - there
    seen: list[int] = []
    assert streamed.fetch(seen.append).read_bytes() == DATA
    assert sum(seen) == SIZE - there
    assert hub.requests(WEIGHTS)[-1].range == f"bytes={there}-{SIZE - 1}"


def test_a_leftover_that_is_not_the_file_is_replaced(streamed: StreamedFile) -> None:
    part = streamed.path.with_name(f"{WEIGHTS}.part")
    for content in (bytes(1_000_000), bytes(SIZE), bytes(SIZE + 1)):
        streamed.release()
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        assert streamed.fetch(ignore).read_bytes() == DATA


Fetch = Callable[..., Path]


def into_cache(
    file: HubFile,
    folder: Path,  # noqa: ARG001 (the cache is elsewhere)
    advance: Advance = ignore,
) -> Path:
    return file.fetch(advance)


def into_folder(file: HubFile, folder: Path, advance: Advance = ignore) -> Path:
    return StreamedFile(file, folder).fetch(advance)


BOTH = pytest.mark.parametrize("fetch", [into_cache, into_folder])


@BOTH
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_wrong_bytes_are_fetched_afresh_once_and_then_refused_by_name(
    hub: Hub, tmp_path: Path, fetch: Fetch, name: str
) -> None:
    file = hub_files(REPO, None)[0][name]
    wrong = Fault(name, method="GET", flip_at=7, times=2)
    hub.inject(wrong)
    with pytest.raises(CtcliError, match=f"{REPO}/{name}: .*twice") as refused:
        fetch(file, tmp_path / "scratch")
    assert ("SHA-256" if name == WEIGHTS else "git hash") in refused.value.problems[0]
    assert wrong.times == 0
    assert left_in(tmp_path / "scratch") == []
    hub.inject(Fault(name, method="GET", flip_at=7))
    expected = hub.contents(REPO)[name]
    seen: list[int] = []
    assert fetch(file, tmp_path / "scratch", seen.append).read_bytes() == expected
    assert sum(seen) == len(expected)
    assert file.read(0, 100) == expected[:100]


PASSING = [
    Fault(WEIGHTS, status=429, retry_after=0, times=2),
    Fault(WEIGHTS, status=503, times=2),
    Fault(WEIGHTS, path_prefix=CDN, status=500, times=2),
    Fault(WEIGHTS, path_prefix=CDN, after_bytes=10, times=2),
    Fault(WEIGHTS, lose_answer=True, times=2),
]


@pytest.mark.parametrize("fault", PASSING, ids=["429", "503", "500", "dropped", "no answer"])
@pytest.mark.parametrize("what", ["cache", "folder", "range"])
def test_what_may_pass_is_tried_again(hub: Hub, tmp_path: Path, fault: Fault, what: str) -> None:
    file = weights()
    hub.inject(used := replace(fault))
    match what:
        case "cache":
            assert into_cache(file, tmp_path).read_bytes() == DATA
        case "folder":
            assert into_folder(file, tmp_path / "scratch").read_bytes() == DATA
        case "range":
            assert file.read(1000, 2_000_000) == DATA[1000:2_001_000]
    assert used.times == 0


@pytest.mark.parametrize("status", [429, 502])
def test_listing_is_tried_again(hub: Hub, status: int) -> None:
    hub.inject(Fault(REPO, status=status, times=2), Fault("config.json", status=status))
    files, _ = list_hub(REPO, None)
    assert WEIGHTS in files


@BOTH
@pytest.mark.parametrize(
    ("status", "said"), [(401, "token"), (403, "token"), (404, "does not have it")]
)
def test_what_will_not_pass_ends_at_once(
    hub: Hub, tmp_path: Path, fetch: Fetch, status: int, said: str
) -> None:
    file = weights()
    hub.forget()
    hub.inject(Fault(WEIGHTS, path_prefix=CDN, status=status, times=1000))
    with pytest.raises(CtcliError) as refused:
        fetch(file, tmp_path / "scratch")
    (problem,) = refused.value.problems
    assert problem.startswith(f"{REPO}/{WEIGHTS}: ")
    assert f"({status})" in problem
    assert said in problem
    assert len([r for r in hub.requests(WEIGHTS) if r.path.startswith(CDN)]) == 1


def test_a_commit_that_went_away_is_said_to_be_gone(hub: Hub, streamed: StreamedFile) -> None:
    hub.repos[REPO].commits.clear()
    with pytest.raises(CtcliError, match="with which this run began, is gone"):
        streamed.fetch(ignore)


def test_a_name_that_leads_out_of_the_repository_is_refused(hub: Hub) -> None:
    repo = hub.repos[REPO]
    sha = repo.branches["main"]
    held = repo.commits[sha]
    names = {"../../evil.safetensors": replace(held.tree[WEIGHTS], path="../../evil.safetensors")}
    repo.commits[sha] = replace(held, tree=names)
    with pytest.raises(CtcliError, match="leads out of it"):
        list_hub(REPO, None)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes as fast as one waits, and what was waited for, in seconds."""
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setattr(retries, "FIRST_DELAY", 1.0)
    return slept


@pytest.mark.parametrize(
    ("fault", "least"),
    [
        (Fault(WEIGHTS, status=429, retry_after=40), 40),
        (Fault(WEIGHTS, status=429, reset_after=40), 40),
        (Fault(WEIGHTS, status=503, retry_after=3600), 600),
        (Fault(WEIGHTS, status=429, reset_after=3600), 600),
        (Fault(WEIGHTS, status=429, retry_after=0), 0),
    ],
)
def test_the_pause_that_the_server_asks_for_is_kept(
    hub: Hub, pauses: list[float], fault: Fault, least: float
) -> None:
    file = weights()
    hub.inject(replace(fault))
    assert file.read(0, 10) == DATA[:10]
    assert least <= sum(pauses) <= least + 1.1


def test_pauses_double_with_jitter_and_come_to_an_end(hub: Hub, pauses: list[float]) -> None:
    file = weights()
    hub.inject(Fault(WEIGHTS, status=503, times=1000))
    hub.forget()
    with pytest.raises(CtcliError, match="did not deliver"):
        file.read(0, 10)
    assert len(hub.requests(WEIGHTS)) == retries.TRIES
    full = sum(2**n for n in range(retries.TRIES - 1))
    assert full / 2 <= sum(pauses) < full + 0.1
    assert sum(pauses) != pytest.approx(full, abs=1e-3)


def test_a_hub_out_of_reach_is_given_up_after_few_tries(hub: Hub, pauses: list[float]) -> None:
    hub.close()
    with pytest.raises(CtcliError, match="did not deliver"):
        list_hub(REPO, None)
    full = sum(2**n for n in range(retries.FEW_TRIES - 1))
    assert full / 2 <= sum(pauses) < full + 0.1


class EndError(Exception):
    """Raised by the tests' progress."""


def test_a_pause_ends_when_the_work_is_to_end(
    hub: Hub, streamed: StreamedFile, pauses: list[float]
) -> None:
    hub.inject(Fault(WEIGHTS, status=429, retry_after=300))

    def advance(nbytes: int) -> None:  # noqa: ARG001
        if sum(pauses) > 1:
            raise EndError

    with pytest.raises(EndError):
        streamed.fetch(advance)
    assert sum(pauses) < 2


def each_way(file: HubFile, folder: Path) -> list[Callable[[], object]]:
    return [
        lambda: file.read(0, 10),
        lambda: file.fetch(ignore),
        lambda: StreamedFile(file, folder).fetch(ignore),
    ]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("place", ["/api/", "/org/", CDN])
def test_no_token_and_no_signature_in_errors_and_logs(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    place: str,
) -> None:
    lead(monkeypatch, hub, tmp_path / "home", TOKEN)
    caplog.set_level(logging.DEBUG)
    works = each_way(weights(), tmp_path / "scratch")
    if place == "/api/":
        works = [lambda: list_hub(REPO, None)]
    says = f"no: {TOKEN} and Bearer {TOKEN} at {hub.elsewhere}/x?Signature=cdn-secret"
    hub.inject(Fault("", path_prefix=place, status=status, retry_after=0, body=says, times=100))
    for work in works:
        with pytest.raises(CtcliError) as refused:
            work()
        assert f"({status})" in str(refused.value)
        assert TOKEN not in str(refused.value)
        assert "secret" not in str(refused.value)
    assert TOKEN not in caplog.text
    assert any(request.authorized for request in hub.requests())
