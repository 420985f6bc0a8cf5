"""The hub double is worth no more than its likeness: here the real client talks to it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.hub import Fault, Hub
from tests.helpers.processes import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "org/model"
WEIGHTS = "model.safetensors"
CLIENT = """
import sys
import huggingface_hub as hf
try:
    print(eval(sys.argv[1]))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "sub dir").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "empty.txt").touch()
    (source / "sub dir" / "100% größe.txt").write_text("nested")
    (source / WEIGHTS).write_bytes(random.Random(0).randbytes(3_000_000))
    return source


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def client(hub: Hub, home: Path, expression: str, token: str | None = None) -> str:
    """Evaluate an expression on ``hf``, the client; return its value or its exception's name."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, expression],
        env={**os.environ, **hub.env(home, token)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_snapshot_has_equal_bytes_and_the_token_stays_off_the_cdn(
    hub: Hub, folder: Path, home: Path
) -> None:
    sha = hub.add(REPO, folder)
    snapshot = Path(client(hub, home, f"hf.snapshot_download('{REPO}')", hub.token))
    assert snapshot.name == sha
    assert contents(snapshot) == contents(folder)
    assert hub.bytes_sent(WEIGHTS) == 3_000_000
    weights = hub.requests(WEIGHTS)
    assert [(seen.method, seen.path.split("/")[1]) for seen in weights] == [
        ("HEAD", "org"),
        ("GET", "cdn"),
    ]
    assert [seen.authorized for seen in weights] == [True, False]


def test_old_commits_and_other_branches_stay_readable(hub: Hub, folder: Path, home: Path) -> None:
    first = hub.add(REPO, folder)
    assert hub.add(REPO, folder) == first
    (folder / "config.json").write_text('{"changed": true}')
    second = hub.add(REPO, folder)
    (folder / "config.json").write_text('{"branch": true}')
    third = hub.add(REPO, folder, branch="dev/next")
    assert len({first, second, third}) == 3
    revisions = [first, "main", second, "dev/next"]
    text = client(
        hub,
        home,
        f"[open(hf.hf_hub_download('{REPO}', 'config.json', revision=revision)).read()"
        f" for revision in {revisions}]",
    )
    changed = '{"changed": true}'
    assert text == str(["{}", changed, changed, '{"branch": true}'])


def test_metadata_names_content_without_sending_weights(hub: Hub, folder: Path, home: Path) -> None:
    sha = hub.add(REPO, folder)
    answers = client(
        hub,
        home,
        f"(lambda api: [(info := api.model_info('{REPO}', files_metadata=True)).sha,"
        f" [file.lfs.size for file in info.siblings if file.lfs],"
        f" sorted(file.path for file in api.list_repo_tree('{REPO}', recursive=True)),"
        f" sorted(file.path for file in api.list_repo_tree('{REPO}')),"
        f" [file.path for file in api.list_repo_tree('{REPO}', 'sub dir')],"
        f" [file.size for file in api.get_paths_info('{REPO}', ['config.json', 'none'])],"
        f" api.file_exists('{REPO}', '{WEIGHTS}'), api.file_exists('{REPO}', 'none')])(hf.HfApi())",
    )
    nested = "sub dir/100% größe.txt"
    top = ["config.json", "empty.txt", WEIGHTS, "sub dir"]
    assert answers == str([sha, [3_000_000], [*top, nested], top, [nested], [2], True, False])
    assert hub.bytes_sent(WEIGHTS) == 0


@pytest.mark.parametrize(
    ("token", "outcome"),
    [(None, "GatedRepoError"), ("hf_stranger", "GatedRepoError"), (Hub.token, "2")],
)
def test_gated_repo_needs_the_token(
    hub: Hub, folder: Path, home: Path, token: str | None, outcome: str
) -> None:
    hub.add(REPO, folder, gated=True)
    size = f"len(open(hf.snapshot_download('{REPO}') + '/config.json').read())"
    assert client(hub, home, size, token) == outcome


@pytest.mark.parametrize(
    ("arguments", "token", "error"),
    [
        ("'org/none'", None, "RepositoryNotFoundError"),
        ("'org/none'", Hub.token, "RepositoryNotFoundError"),
        ("'org/private'", None, "RepositoryNotFoundError"),
        ("'org/private', revision='none'", Hub.token, "RevisionNotFoundError"),
    ],
)
def test_what_is_not_found_is_named(
    hub: Hub, folder: Path, home: Path, arguments: str, token: str | None, error: str
) -> None:
    hub.add("org/private", folder, private=True)
    assert client(hub, home, f"hf.snapshot_download({arguments})", token) == error


def test_broken_connection_is_resumed_with_a_range(hub: Hub, folder: Path, home: Path) -> None:
    # The client keeps what it has in whole pieces of 10 MiB, so the break must come later.
    size, broken_at = 16_000_000, 12_000_000
    (folder / WEIGHTS).write_bytes(random.Random(1).randbytes(size))
    hub.add(REPO, folder)
    hub.inject(Fault(WEIGHTS, after_bytes=broken_at))
    snapshot = Path(client(hub, home, f"hf.snapshot_download('{REPO}')"))
    assert contents(snapshot) == contents(folder)
    whole, resumed = hub.requests(WEIGHTS, method="GET")
    assert whole.range is None
    assert resumed.range is not None
    start = int(resumed.range.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= broken_at
    assert hub.bytes_sent(WEIGHTS) == broken_at + size - start


def test_errors_on_the_way_are_retried(hub: Hub, folder: Path, home: Path) -> None:
    hub.add(REPO, folder)
    hub.inject(
        Fault("config.json", method="HEAD", status=503),
        Fault(WEIGHTS, path_prefix="/cdn/", status=429, retry_after=0),
    )
    snapshot = Path(client(hub, home, f"hf.snapshot_download('{REPO}')"))
    assert contents(snapshot) == contents(folder)
    assert len(hub.requests("config.json", method="HEAD")) == 2
    assert len(hub.requests(WEIGHTS, method="GET")) == 2


def test_ranges_and_damage_to_bytes(hub: Hub, folder: Path) -> None:
    hub.add(REPO, folder)
    data = (folder / WEIGHTS).read_bytes()
    url = f"{hub.url}/{REPO}/resolve/main/{WEIGHTS}"
    with httpx.Client(trust_env=False, follow_redirects=True) as session:

        def get(byte_range: str) -> httpx.Response:
            return session.get(url, headers={"Range": f"bytes={byte_range}"})

        middle = get("10-19")
        assert (middle.status_code, middle.content) == (206, data[10:20])
        assert middle.headers["Content-Range"] == "bytes 10-19/3000000"
        assert get("-5").content == data[-5:]
        assert get("2999990-4000000").content == data[-10:]
        beyond = get("3000000-")
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */3000000")

        hub.inject(Fault(WEIGHTS, flip_at=15))
        assert get("0-9").content == data[:10]
        assert get("10-19").content == data[10:15] + bytes([data[15] ^ 0xFF]) + data[16:20]
        assert get("10-19").content == data[10:20]

        hub.inject(Fault(WEIGHTS, rate=1000))
        slow = get("0-199")
        assert slow.content == data[:200]
        assert slow.elapsed.total_seconds() > 0.1


def test_an_answer_waits_and_what_is_to_happen_before_it_does(hub: Hub, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    hub.add(REPO, folder)
    url = f"{hub.url}/{REPO}/resolve/main/{WEIGHTS}"
    goes_on, happened = threading.Event(), list[str]()
    hub.inject(Fault(WEIGHTS, hold=goes_on, held_at=1_000_000))

    def happen() -> None:
        happened.append("asked a second time")

    with (
        httpx.Client(follow_redirects=True, timeout=HANG_SECONDS) as session,
        hub.on(lambda r: r.path.endswith(WEIGHTS), happen, nth=2),
        session.stream("GET", url) as answer,
    ):
        assert happened == ["asked a second time"]
        pieces = answer.iter_bytes(1_000_000)
        assert next(pieces) == data[:1_000_000]
        assert hub.bytes_sent(WEIGHTS) < 1_001_000
        goes_on.set()
        assert b"".join(pieces) == data[1_000_000:]
    with httpx.Client(follow_redirects=True) as session:
        assert session.get(url).content == data
    assert len(happened) == 1
