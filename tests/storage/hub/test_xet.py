"""Large files through Xet storage, as clients of today move them: well, and with every failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ctcli.storage.hub.retries import TRIES
from tests.conftest import Ctcli
from tests.fuzzing.checkpoints import write_large
from tests.helpers.checkpoints import tensor_hashes
from tests.helpers.hub import Fault, Hub
from tests.helpers.hub.client import DEPRECATED, lead

pytestmark = DEPRECATED

PAGE = b"<html><body>Log in</body></html>"
READ_TOKEN = "/api/models/org/model/xet-read-token/"
WRITE_TOKEN = "/api/models/org/made/xet-write-token/"
PARTS, XORBS = "/cas/v1/reconstructions/", "/xorbs/"
PUT_XORB, PUT_SHARD, GRANTS = "/cas/v1/xorbs/", "/cas/v1/shards", "/cas/v1/xorb-grants/"
NO_JSON = "the hub's storage (Xet) did not deliver: error decoding response body"


def failing(prefix: str, *statuses: int) -> list[tuple[Fault, str]]:
    """Answers of these statuses, and what is said of them."""
    return [
        (
            Fault("", path_prefix=prefix, status=status),
            f"storage (Xet) did not deliver: HTTP status {kind} error ({status} ",
        )
        for status in statuses
        for kind in ["server" if status >= 500 else "client"]
    ]


DOWN = [
    (Fault("", path_prefix=READ_TOKEN, status=401), "the hub does not accept your token (401)"),
    (Fault("", path_prefix=READ_TOKEN, status=403), "your token does not allow this (403)"),
    (Fault("", path_prefix=READ_TOKEN, status=500), "the hub did not deliver (500)"),
    *failing(PARTS, 400, 401, 403, 404, 429, 500, 503),
    (Fault("", path_prefix=PARTS, page=PAGE), NO_JSON),
    *failing(XORBS, 403, 404, 500),
    (Fault("", path_prefix=XORBS, page=PAGE), "storage (Xet) did not deliver: Malformed data"),
    (Fault("", path_prefix=XORBS, after_bytes=1000), NO_JSON),
]
UP = [
    (Fault("", path_prefix=WRITE_TOKEN, status=401), "the hub does not accept your token"),
    (Fault("", path_prefix=WRITE_TOKEN, status=403), "your token does not allow this"),
    *failing(WRITE_TOKEN, 500),
    (Fault("", path_prefix=WRITE_TOKEN, page=PAGE), NO_JSON),
    *failing(PUT_XORB, 400, 401, 403, 404, 429, 500, 503),
    (Fault("", path_prefix=PUT_XORB, page=PAGE), NO_JSON),
    *failing(PUT_SHARD, 400, 500),
    (Fault("", path_prefix=PUT_SHARD, page=PAGE), NO_JSON),
    *failing(GRANTS, 500),
]
PASSING = [
    ("down", Fault("", path_prefix=XORBS, flip_at=70_000)),
    ("down", Fault("", path_prefix=PARTS, status=503, times=4)),
    ("down", Fault("", path_prefix=XORBS, status=403, times=4)),
    ("up", Fault("", path_prefix=PUT_XORB, status=500, times=4)),
    ("up", Fault("", path_prefix=PUT_SHARD, page=PAGE, times=4)),
]


def name_of(case: object) -> str | None:
    if not isinstance(case, Fault):
        return None
    what = case.status or ("page" if case.page else "bytes")
    return f"{case.path_prefix.strip('/').rpartition('/')[2]}-{what}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3.7 MB, in three shards of many chunks each."""
    return write_large(tmp_path_factory.mktemp("xet") / "source", 3)


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:
    with Hub() as running:
        running.is_xet = True
        running.add("org/model", source)
        yield running


class Job:
    """A command that reads from the hub, or writes to it, in this process."""

    def __init__(self, cli: Ctcli, hub: Hub, folder: Path, words: Sequence[str | Path]) -> None:
        self._cli, self._hub, self._words = cli, hub, words
        self._out = folder / "out"

    def run(self) -> subprocess.CompletedProcess[str]:
        return self._cli("reindex", *self._words, "--num-workers", "1")

    @property
    def tensors(self) -> dict[str, str]:
        """What was made."""
        if not self._out.exists() and "org/made" in self._hub.repos:
            self._out.mkdir()
            for name, content in self._hub.contents("org/made").items():
                (self._out / name).write_bytes(content)
        return tensor_hashes(self._out)


@pytest.fixture
def job(
    cli: Ctcli, hub: Hub, source: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> Job:
    lead(monkeypatch, hub, tmp_path / "home", hub.token)
    monkeypatch.chdir(tmp_path)
    down, up = ("org/model", tmp_path / "out"), (source, "hf://org/made")
    return Job(cli, hub, tmp_path, down if way == "down" else up)


def asked(hub: Hub, prefix: str) -> int:
    return len([request for request in hub.requests() if request.path.startswith(prefix)])


@pytest.mark.parametrize("way", ["down", "up"])
def test_large_files_go_through_the_storage(hub: Hub, job: Job, way: str, source: Path) -> None:
    done = job.run()
    assert done.returncode == 0, done.stderr
    assert asked(hub, XORBS if way == "down" else PUT_XORB) >= 2
    assert not asked(hub, "/storage/")
    assert hub.bytes_sent(".safetensors") < 200_000  # headers
    assert job.tensors == tensor_hashes(source)


@pytest.mark.parametrize(
    ("way", "fault", "said"),
    [*(("down", *case) for case in DOWN), *(("up", *case) for case in UP)],
    ids=name_of,
)
def test_a_lasting_failure_is_told_as_what_it_is_and_tried_again_where_it_may_pass(
    hub: Hub, job: Job, way: str, fault: Fault, said: str
) -> None:
    hub.inject(replace(fault, times=1000))
    done = job.run()
    assert done.returncode == 1
    problem, _ = done.stderr.splitlines()
    assert problem.startswith(f"error: org/{'model' if way == 'down' else 'made'}/model-0000")
    assert said in problem
    assert "secret" not in problem
    assert not job.tensors
    is_token = fault.path_prefix in (READ_TOKEN, WRITE_TOKEN)
    is_refused = fault.status in (400, 401, 404) or (fault.status == 403 and is_token)
    count = asked(hub, fault.path_prefix)
    # Of three files, one after the other or side by side.
    assert count <= 3 if is_refused else count >= TRIES, count


@pytest.mark.parametrize(("way", "fault"), PASSING, ids=name_of)
def test_a_failure_that_passes_is_not_told(
    hub: Hub, job: Job, way: str, fault: Fault, source: Path
) -> None:
    hub.inject(fault)
    done = job.run()
    assert done.returncode == 0, done.stderr
    assert job.tensors == tensor_hashes(source)
    assert not fault.times or way == "down"


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_storage_that_cannot_be_reached_is_told_as_such(hub: Hub, job: Job) -> None:
    hub.storage = "http://127.0.0.1:9/cas"
    done = job.run()
    assert done.returncode == 1
    assert "the hub's storage (Xet) did not deliver: " in done.stderr
    assert "error sending request for url (http://127.0.0.1:9/cas/" in done.stderr
    assert not job.tensors


@pytest.mark.parametrize("way", ["down"])
def test_a_hub_that_names_no_storage_is_not_trusted(hub: Hub, job: Job) -> None:
    hub.inject(Fault("", path_prefix=READ_TOKEN, page=PAGE, times=1000))
    done = job.run()
    assert done.returncode == 1
    assert "what answers is not a model hub: Xet headers" in done.stderr


# In a process of its own: the limit is on every file that it writes.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from ctcli.errors import CtcliError
from ctcli.storage.hub.files import list_hub
files, _ = list_hub("org/model", None)
try:
    files["model-00001-of-00003.safetensors"].fetch(lambda _: None)
except CtcliError as error:
    print(error)
"""


def test_a_disk_that_is_full_is_told_as_such_and_not_tried_again(hub: Hub, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **hub.env(tmp_path / "home")},
    )
    problem, hint = done.stdout.splitlines()
    assert problem.endswith(": the hub cache cannot be used: File too large.")
    assert hint == "Check HF_HOME, its permissions and its disk."
    assert asked(hub, PARTS) == 1
