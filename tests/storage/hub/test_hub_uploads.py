"""The hub double's way in: here the real client makes repositories, branches and commits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import CommitOperationCopy as Copy
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.helpers.hub import Fault, Hub
from tests.helpers.hub.client import DEPRECATED, lead

pytestmark = DEPRECATED

REPO = "org/made"
WEIGHTS = "model.safetensors"
DATA = random.Random(0).randbytes(300_000)
PUT = "/storage/"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def api(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    lead(monkeypatch, hub, tmp_path / "home", hub.token)
    api = HfApi()
    api.create_repo(REPO)
    return api


def push(
    api: HfApi,
    *operations: Add | Copy | Delete,
    revision: str | None = None,
    parent_commit: str | None = None,
) -> str:
    """Commit some operations and return the commit's sha."""
    made = api.create_commit(
        REPO,
        operations,
        commit_message="Change it",
        revision=revision,
        parent_commit=parent_commit,
    )
    return made.oid


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_what_was_pushed_is_read_back_by_every_endpoint(hub: Hub, api: HfApi) -> None:
    first = api.model_info(REPO).sha
    sha = push(api, Add(WEIGHTS, DATA), Add("sub/config.json", b"{}"), Add("empty.txt", b""))
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == sha
    sizes = {f.rfilename: f.lfs.size if f.lfs else f.size for f in info.siblings or ()}
    assert sizes.pop(".gitattributes")
    assert sizes == {WEIGHTS: 300_000, "sub/config.json": 2, "empty.txt": 0}
    assert Path(hf_hub_download(REPO, WEIGHTS)).read_bytes() == DATA
    assert hub.contents(REPO)["sub/config.json"] == b"{}"
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [sha, first]
    assert api.list_repo_commits(REPO)[0].title == "Change it"
    assert [r.authorized for r in hub.requests(method="PUT")] == [False]


def test_content_that_is_there_is_not_sent_again_and_nothing_new_is_no_commit(
    hub: Hub, api: HfApi
) -> None:
    sha = push(api, Add(WEIGHTS, DATA))
    assert push(api, Add(WEIGHTS, DATA)) == sha
    assert push(api, Add("again.safetensors", DATA)) != sha
    assert hub.bytes_received() == len(DATA)


def test_branches_are_made_listed_committed_to_and_deleted(hub: Hub, api: HfApi) -> None:
    begin = str(api.model_info(REPO).sha)
    push(api, Add("later.txt", b"later"))
    api.create_branch(REPO, branch="dev/next", revision=begin)
    sha = push(api, Add(WEIGHTS, DATA), revision="dev/next")
    heads = {branch.name: branch.target_commit for branch in api.list_repo_refs(REPO).branches}
    assert heads == {"main": api.model_info(REPO).sha, "dev/next": sha}
    assert hub.contents(REPO, "dev/next").keys() == {".gitattributes", WEIGHTS}
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_branch(REPO, branch="dev/next")
    assert status_of(refused) == 409
    api.delete_branch(REPO, branch="dev/next")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="dev/next")


def test_copies_take_large_content_over_and_deletions_take_it_away(hub: Hub, api: HfApi) -> None:
    api.create_branch(REPO, branch="work")
    work = push(api, Add(WEIGHTS, DATA), Add("note.txt", b"note"), revision="work")
    push(
        api,
        Copy(WEIGHTS, "first.safetensors", src_revision=work),
        Copy("note.txt", "sub/note.txt", src_revision=work),
    )
    held = hub.contents(REPO)
    assert held["first.safetensors"] == DATA
    assert held["sub/note.txt"] == b"note"
    assert hub.bytes_received() == len(DATA)
    push(api, Delete("sub/"), Delete("first.safetensors"))
    assert hub.contents(REPO).keys() == {".gitattributes"}


def test_a_commit_on_a_parent_that_is_not_the_head_is_refused(hub: Hub, api: HfApi) -> None:
    begin = str(api.model_info(REPO).sha)
    push(api, Add("a.txt", b"a"), parent_commit=begin)
    with pytest.raises(HfHubHTTPError) as refused:
        push(api, Add("b.txt", b"b"), parent_commit=begin)
    assert status_of(refused) == 412
    assert "b.txt" not in hub.contents(REPO)


def test_content_that_no_branch_shows_can_be_lost(hub: Hub, api: HfApi) -> None:
    addition = Add(WEIGHTS, DATA)
    api.preupload_lfs_files(REPO, [addition])
    hub.repos[REPO].collect_garbage()
    with pytest.raises(BadRequestError, match="no LFS object"):
        push(api, addition)


def test_parts_are_put_together(hub: Hub, api: HfApi) -> None:
    hub.part_bytes = 70_000
    push(api, Add(WEIGHTS, DATA))
    assert hub.contents(REPO)[WEIGHTS] == DATA
    assert len(hub.requests(method="PUT")) == 5


@pytest.mark.parametrize(
    ("token", "repo", "status"),
    [
        (None, "org/new", 401),
        (Hub.reader_token, "org/new", 403),
        (Hub.token, "elsewhere/new", 403),
        (Hub.token, REPO, 409),
    ],
)
def test_who_may_make_a_repository(
    hub: Hub,
    api: HfApi,
    token: str | None,
    repo: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lead(monkeypatch, hub, tmp_path / "home", token)
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(repo)
    assert status_of(refused) == status
    assert hub.repos.keys() == {REPO}


def test_a_reader_changes_nothing_and_a_stranger_sees_no_private_repository(
    hub: Hub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo("org/secret", private=True)
    assert hub.repos["org/secret"].private
    assert api.whoami()["name"] == "tester"
    lead(monkeypatch, hub, tmp_path / "home", hub.reader_token)
    assert api.model_info("org/secret").private
    with pytest.raises(HfHubHTTPError) as refused:
        push(api, Add("a.txt", b"a"))
    assert status_of(refused) == 403
    lead(monkeypatch, hub, tmp_path / "home", "hf_stranger")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/secret")


def test_a_card_with_an_unknown_licence_is_refused_before_anything_is_sent(
    hub: Hub, api: HfApi
) -> None:
    with pytest.raises(ValueError, match="license"):
        push(api, Add("README.md", b"---\nlicense: my-own\n---\n"), Add(WEIGHTS, DATA))
    assert hub.bytes_received() == 0
    push(api, Add("README.md", b"---\nlicense: mit\n---\n"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("", path_prefix=PUT, status=503),
        Fault("", path_prefix=PUT, status=429, retry_after=0),
        Fault("", path_prefix=PUT, after_bytes=100_000),
        Fault("", path_prefix=PUT, lose_answer=True),
        Fault("objects/batch", status=502),
        Fault("verify", status=500),
    ],
    ids=["503", "429", "dropped", "lost answer", "batch", "verify"],
)
def test_the_client_itself_gets_over_a_fault_of_an_upload(
    hub: Hub, api: HfApi, fault: Fault
) -> None:
    hub.inject(fault)
    push(api, Add(WEIGHTS, DATA))
    assert fault.times == 0
    assert hub.contents(REPO)[WEIGHTS] == DATA


def test_wrong_bytes_are_refused_and_slow_ones_are_slow(hub: Hub, api: HfApi) -> None:
    hub.inject(Fault("", path_prefix=PUT, flip_at=1000))
    with pytest.raises(RuntimeError) as refused:
        push(api, Add(WEIGHTS, DATA))
    assert isinstance(refused.value.__cause__, BadRequestError)
    assert WEIGHTS not in hub.contents(REPO)
    hub.inject(throttle := Fault("", path_prefix=PUT, rate=1_000_000))
    begin = time.monotonic()
    push(api, Add(WEIGHTS, DATA))
    assert time.monotonic() - begin > 0.25
    assert throttle.times == 0
    assert hub.contents(REPO)[WEIGHTS] == DATA


def test_a_commit_whose_answer_is_lost_was_made(hub: Hub, api: HfApi) -> None:
    hub.inject(Fault("commit/main", lose_answer=True))
    with pytest.raises(Exception, match="disconnected"):
        push(api, Add(WEIGHTS, DATA))
    assert hub.contents(REPO)[WEIGHTS] == DATA
