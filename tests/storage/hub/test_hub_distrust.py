"""A hub that is none, or a bad one: nothing is written outside the cache, and one line says why."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ctcli.errors import CtcliError
from ctcli.storage.hub.errors import hub_errors
from ctcli.storage.hub.guard import is_plain, may_have_token
from ctcli.storage.hub.retries import is_passing
from tests.conftest import Ctcli
from tests.helpers.hub import Fault, Hub
from tests.storage.hub.test_stream import REPO, source  # noqa: F401 (a fixture)

TOKEN, MADE = "hf_" + "Qd3" * 11 + "T", "org/made"
PORTAL = b"<!DOCTYPE html><html><title>Welcome to our hotel</title><a href='/login'>Log in</a>"
DEEP = b'{"a":' + b"[" * 100_000
PAGES = (PORTAL, DEEP, b"", b"[]", b"null", b"\xff\xfe", b'{"id": [1]}')


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:  # noqa: F811
    with Hub() as running:
        running.token = TOKEN
        running.add(REPO, source)
        yield running


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.env(tmp_path / "home", TOKEN)


def assert_one_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 1, done.stderr
    problem, hint = done.stderr.splitlines()
    assert problem.startswith("error: ")
    assert hint.startswith("next: ")
    assert all(part in problem for part in said), problem


@pytest.mark.parametrize("name", ["0" * 40, "main", "abc-12", "a.b_c", "sha256:0a"])
def test_plain_names(name: str) -> None:
    assert is_plain(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a\0", "a b", "x" * 300])
def test_paths_are_not_plain_names(name: str) -> None:
    assert not is_plain(name)


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("value", ['"../../../../evil"', ".."])
def test_an_answer_whose_names_are_paths_is_refused(
    hub: Hub, ctcli: Ctcli, tmp_path: Path, env: dict[str, str], header: str, value: str
) -> None:
    hub.inject(Fault("", method="HEAD", times=99, headers={header: value}))
    done = ctcli("reindex", REPO, tmp_path / "out", env=env)
    assert_one_line(done, f"the hub's {header} is not a plain name")
    assert {path.name for path in tmp_path.iterdir()} <= {"home", ".out.ctcli-partial"}
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sha", "../../../evil", "the hub's commit is not a plain name"),
        ("sha", None, "the hub's commit is not a plain name: None"),
        ("siblings", [{"rfilename": "../evil"}], "a file's name leads out"),
        ("siblings", [{"rfilename": "/evil"}], "a file's name leads out"),
        ("siblings", [{"rfilename": "a/./evil"}], "a file's name leads out"),
        ("siblings", [{"rfilename": "evil\0"}], "a file's name leads out"),
        ("siblings", [{"rfilename": 3}], "a file's name leads out"),
        ("siblings", [{"rfilename": "x", "size": "many"}], "the hub's size of x is 'many'"),
        ("siblings", [{"rfilename": "x", "size": -1}], "the hub's size of x is -1"),
        ("siblings", [{}], "is not a model hub"),
        ("siblings", 3, "is not a model hub"),
        ("id", None, ""),
    ],
)
def test_a_listing_that_is_none_is_refused(
    hub: Hub,
    ctcli: Ctcli,
    tmp_path: Path,
    env: dict[str, str],
    key: str,
    value: object,
    said: str,
) -> None:
    info = {"id": REPO, "sha": "0" * 40, "siblings": [], "private": False, "tags": []}
    page = json.dumps({**info, key: value}).encode()
    hub.inject(Fault(REPO, path_prefix="/api/models", method="GET", times=99, page=page))
    done = ctcli("reindex", REPO, tmp_path / "out", "--stream", env=env)
    assert_one_line(done, said)


@pytest.mark.parametrize(
    "page", [PORTAL, b"", b"[]", b"null", b"\xff\xfe", b'{"id": [1]}'], ids=str
)
@pytest.mark.parametrize("command", ["read", "push"])
def test_something_that_is_no_hub_ends_in_one_line_and_an_event(
    hub: Hub,
    ctcli: Ctcli,
    tmp_path: Path,
    env: dict[str, str],
    source: Path,  # noqa: F811
    command: str,
    page: bytes,
) -> None:
    hub.inject(Fault("", times=10**6, page=page))
    words = (
        ("reindex", REPO, tmp_path / "out")
        if command == "read"
        else ("reindex", source, tmp_path / "out", "--push", MADE)
    )
    done = ctcli(*words, env=env)
    assert_one_line(done, "is not a model hub" if page in (PORTAL, DEEP, b"[]", b"null") else "")
    done = ctcli(*words, "--log-format", "json", env=env)
    last = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, last["event"]) == (1, "failed")


@pytest.mark.parametrize(
    "path", ["refs", "create", "commit/main", "preupload/main", "batch", "commits/main", "branch"]
)
def test_a_portal_that_comes_up_in_the_middle_of_a_push_ends_in_one_line(
    hub: Hub,
    ctcli: Ctcli,
    tmp_path: Path,
    env: dict[str, str],
    source: Path,  # noqa: F811
    path: str,
) -> None:
    hub.add(MADE, _folder(tmp_path / "empty"))
    hub.inject(Fault(path, times=10**6, page=PORTAL))
    done = ctcli("reindex", source, tmp_path / "out", "--push", MADE, "--overwrite", env=env)
    if done.returncode:
        assert_one_line(done)
    assert "Traceback" not in done.stderr


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


class _Listener(BaseHTTPRequestHandler):
    """Another service on the hub's host, which writes down what it is told."""

    seen: list[str | None]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (the base's name)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_token_goes_to_the_hub_and_to_no_other_port_of_its_host(
    hub: Hub, ctcli: Ctcli, tmp_path: Path, env: dict[str, str]
) -> None:
    _Listener.seen = []
    with HTTPServer(("127.0.0.1", 0), _Listener) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        hub.elsewhere = f"http://127.0.0.1:{other.server_port}"
        done = ctcli("reindex", REPO, tmp_path / "out", env=env)
        other.shutdown()
    assert done.returncode == 1
    assert _Listener.seen
    assert set(_Listener.seen) == {None}
    assert any(request.authorized for request in hub.requests())


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://huggingface.co/x", True),
        ("https://huggingface.co:443/x", True),
        ("https://huggingface.co:8443/x", False),
        ("http://huggingface.co/x", False),
        ("https://huggingface.co.evil.org/x", False),
        ("https://evil.org/huggingface.co", False),
    ],
)
def test_who_may_have_a_token(url: str, may: bool) -> None:
    assert may_have_token(url) == may


def test_a_commit_message_holds_no_token(
    hub: Hub,
    ctcli: Ctcli,
    tmp_path: Path,
    env: dict[str, str],
    source: Path,  # noqa: F811
) -> None:
    message = f"made with {TOKEN} and hf_{'z' * 34}"
    given = ("--push", MADE, "--commit-message", message)
    done = ctcli("reindex", source, tmp_path / "out", *given, env=env)
    assert not done.returncode, done.stderr
    repo = hub.repos[MADE]
    said = [commit.title + commit.message for commit in repo.commits.values()]
    assert any("made with *** and hf_***" in text for text in said)
    assert not any(TOKEN in text or "zzz" in text for text in said)
    assert not any(TOKEN.encode() in content for content in hub.contents(MADE).values())


@pytest.mark.parametrize("name", [None, "model.safetensors"])
def test_what_the_clients_rust_part_raises_is_one_line_and_tried_again(name: str | None) -> None:
    error = RuntimeError(f"CAS service error: 500 for url https://x.org/a?sig=s {TOKEN}\nmore")
    assert is_passing(error)
    with pytest.raises(CtcliError) as told, hub_errors("org/name", "main", name):
        raise error
    (problem,) = told.value.problems
    assert "the hub's storage (Xet) did not deliver: 500 for url" in problem
    assert "sig=" not in problem
    assert TOKEN not in problem
    assert "\n" not in problem
