"""Publishing on a hub: file by file, never half seen, taken up again; the real client pushes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ctcli.errors import CtcliError
from ctcli.storage.hub.publication import Publication, open_publication
from ctcli.storage.hub.target import PushTarget, look_at
from tests.helpers.hub import Fault, Hub
from tests.helpers.hub.client import DEPRECATED, lead
from tests.helpers.hub.killing import run_until
from tests.helpers.processes import HANG_SECONDS, environment

pytestmark = DEPRECATED

REPO = "org/made"
TARGET = PushTarget(REPO)
KEY = "layout-key link=False fsync=False"
CARD = b"---\nlicense: mit\n---\nA card.\n"
TOKEN = "hf_" + "Kw7" * 11 + "P"
SHARDS = {f"model-{n}.safetensors": random.Random(n).randbytes(400_000) for n in range(4)}
SMALL: dict[str, bytes | Path] = {"config.json": b"{}", "sub/merges.txt": b"a b", "README.md": b"?"}
MADE = {**SHARDS, **SMALL, "README.md": CARD}
WORK = TARGET.working_branch(KEY)
KILLED_AT = (2, 9, 14, 5, 12, 16)  # requests of each run before it is killed
PUSH = """
import sys, warnings
from pathlib import Path
from ctcli.storage.hub.publication import open_publication
from ctcli.storage.hub.target import PushTarget
warnings.simplefilter("ignore")
repo, key, folder = sys.argv[1:]
made = open_publication(PushTarget(repo), key, Path(folder, "README.md").read_bytes())
for path in sorted(Path(folder).glob("*.safetensors")):
    if path.name not in made.pushed:
        made.push(path.name, path, {path.name: [1.5]}, lambda nbytes: None)
small = {path.name: path for path in Path(folder).glob("*.*") if path.suffix != ".safetensors"}
made.finish(small, lambda nbytes: None)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        running.token = TOKEN
        lead(monkeypatch, running, tmp_path / "home", TOKEN)
        yield running


def ignore(nbytes: int) -> None:
    pass


def push(made: Publication, folder: Path, *names: str) -> None:
    """Push shards, and delete each behind itself."""
    for name in names or SHARDS:
        path = folder / name
        path.write_bytes(SHARDS[name])
        made.push(name, path, {name: [0.5, 2.0]}, ignore)
        path.unlink()


def publish(folder: Path, target: PushTarget = TARGET) -> str:
    made = open_publication(target, KEY, CARD)
    push(made, folder)
    return made.finish(SMALL, ignore)


def held(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    files = hub.contents(REPO, branch)
    del files[".gitattributes"]
    return files


def titles(hub: Hub, branch: str = "main") -> list[str]:
    repo = hub.repos[REPO]
    return [commit.title for _, commit in repo.history(repo.branches[branch])]


def existing(hub: Hub, folder: Path, branch: str = "main") -> str:
    """A repository of another model, on a branch."""
    (folder / "other").mkdir()
    (folder / "other" / ".gitattributes").write_bytes(b"*.safetensors filter=lfs\n")
    (folder / "other" / "model.safetensors").write_bytes(b"another model")
    return hub.add(REPO, folder / "other", branch=branch)


def test_nobody_sees_half_of_it_and_nothing_goes_up_twice(hub: Hub, tmp_path: Path) -> None:
    made = open_publication(TARGET, KEY, CARD)
    seen: list[int] = []

    def push_one(name: str) -> None:
        path = tmp_path / name
        path.write_bytes(SHARDS[name])
        made.push(name, path, {}, seen.append)
        path.unlink()
        assert held(hub) == {}

    with ThreadPoolExecutor(len(SHARDS)) as pool:
        list(pool.map(push_one, SHARDS))
    assert made.pushed.keys() == SHARDS.keys()
    hub.repos[REPO].collect_garbage()
    commit = made.finish(SMALL, ignore)
    assert held(hub) == MADE
    assert hub.repos[REPO].branches == {"main": commit}
    assert titles(hub) == [TARGET.message, "initial commit"]
    assert hub.bytes_received() == sum(seen) == sum(map(len, SHARDS.values()))
    assert not hub.repos[REPO].private


def test_another_machine_goes_on_with_what_the_hub_has(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *others = SHARDS
    push(open_publication(TARGET, KEY, CARD), tmp_path, first, second)
    hub.repos[REPO].collect_garbage()
    lead(monkeypatch, hub, tmp_path / "elsewhere", TOKEN)
    made = open_publication(TARGET, KEY, CARD)
    assert made.pushed.keys() == {first, second}
    assert made.pushed[second].errors == {second: [0.5, 2.0]}
    assert made.pushed[second].size == len(SHARDS[second])
    push(made, tmp_path, *others)
    made.finish(SMALL, ignore)
    assert held(hub) == MADE
    assert hub.bytes_received() == sum(map(len, SHARDS.values()))


def test_another_run_finds_nothing_of_this_one(hub: Hub, tmp_path: Path) -> None:  # noqa: ARG001
    push(open_publication(TARGET, KEY, CARD), tmp_path)
    assert not open_publication(TARGET, "another key", CARD).pushed
    assert not open_publication(replace(TARGET, branch="dev"), KEY, CARD).pushed


@pytest.mark.parametrize("damage", ["", "{", "[]", "key", None])
def test_a_damaged_journal_means_to_begin_again(
    hub: Hub, tmp_path: Path, damage: str | None
) -> None:
    push(open_publication(TARGET, KEY, CARD), tmp_path)
    repo = hub.repos[REPO]
    commit = repo.commits[repo.branches[WORK]]
    tree = {name: file for name, file in commit.tree.items() if name != "ctcli_journal.jsonl"}
    if damage is not None:
        journal = hub.contents(REPO, WORK)["ctcli_journal.jsonl"]
        content = journal.replace(KEY.encode(), b"another") if damage == "key" else damage.encode()
        tree["ctcli_journal.jsonl"] = hub.blobs.store("ctcli_journal.jsonl", content)
    repo.commits[repo.branches[WORK]] = replace(commit, tree=tree)
    made = open_publication(TARGET, KEY, CARD)
    assert not made.pushed
    push(made, tmp_path)
    made.finish(SMALL, ignore)
    assert held(hub) == MADE


def test_a_file_that_left_the_working_branch_does_not_count(hub: Hub, tmp_path: Path) -> None:
    push(open_publication(TARGET, KEY, CARD), tmp_path)
    repo = hub.repos[REPO]
    first, second, *others = SHARDS
    commit = repo.commits[repo.branches[WORK]]
    changed = hub.blobs.store(second, bytes(len(SHARDS[second])))
    tree = {name: file for name, file in commit.tree.items() if name != first}
    repo.commits[repo.branches[WORK]] = replace(commit, tree={**tree, second: changed})
    assert open_publication(TARGET, KEY, CARD).pushed.keys() == set(others)


def test_what_a_branch_holds_is_replaced_only_when_asked(hub: Hub, tmp_path: Path) -> None:
    before = existing(hub, tmp_path)
    with pytest.raises(CtcliError, match="main holds 1 files"):
        open_publication(TARGET, KEY, CARD)
    assert hub.repos[REPO].branches == {"main": before}
    publish(tmp_path, replace(TARGET, overwrite=True))
    assert held(hub) == MADE
    assert titles(hub) == [TARGET.message, "Add files"]


def test_a_new_branch_leaves_the_others_alone(hub: Hub, tmp_path: Path) -> None:
    open_publication(TARGET, "makes the repository", CARD)
    before = existing(hub, tmp_path)
    target = replace(TARGET, branch="w4/a16", message="Quantize\n\nin detail")
    made = open_publication(target, KEY, CARD)
    push(made, tmp_path)
    assert "w4/a16" not in hub.repos[REPO].branches
    made.finish(SMALL, ignore)
    assert held(hub, "w4/a16") == MADE
    assert hub.repos[REPO].branches["main"] == before
    assert titles(hub, "w4/a16")[1:] == ["initial commit"]


def test_private_means_private(hub: Hub, tmp_path: Path) -> None:
    target = replace(TARGET, private=True)
    publish(tmp_path, target)
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    with pytest.raises(CtcliError, match="exists and is public"):
        open_publication(replace(target, overwrite=True), KEY, CARD)


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, REPO, "needs a token"),
        (Hub.reader_token, REPO, "does not allow this (403): Forbidden"),
        (TOKEN, "elsewhere/made", "does not allow this (403): You don't have the rights"),
        (TOKEN, "no such/name", "neither a directory"),
    ],
)
def test_without_the_rights_the_end_is_clear_and_at_once(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    repo: str,
    said: str,
) -> None:
    lead(monkeypatch, hub, tmp_path / "home", token)
    with pytest.raises(CtcliError) as refused:
        open_publication(PushTarget(repo), KEY, CARD)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{repo}: ")
    assert said in problem
    assert hub.repos == {}
    assert len(hub.requests(method="POST")) <= 1


def test_looking_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    assert look_at(TARGET, KEY).is_private is None
    assert hub.repos == {}
    existing(hub, tmp_path)
    with pytest.raises(CtcliError, match="--overwrite"):
        look_at(TARGET, KEY)
    assert not hub.requests(method="POST")


def test_a_card_that_the_hub_refuses_ends_it_before_any_work(hub: Hub) -> None:
    with pytest.raises(CtcliError, match=r"README.md: the hub refuses it: .*license.*my-own") as no:
        open_publication(TARGET, KEY, b"---\nlicense: my-own\n---\n")
    assert "SRC" in no.value.hint
    assert hub.bytes_received() == 0


def test_a_branch_that_moved_is_not_touched_and_what_was_pushed_is_kept(
    hub: Hub, tmp_path: Path
) -> None:
    made = open_publication(TARGET, KEY, CARD)
    push(made, tmp_path)
    theirs = existing(hub, tmp_path)
    with pytest.raises(CtcliError, match="somebody else changed it"):
        made.finish(SMALL, ignore)
    assert hub.repos[REPO].branches["main"] == theirs
    made = open_publication(replace(TARGET, overwrite=True), KEY, CARD)
    assert made.pushed.keys() == SHARDS.keys()
    made.finish(SMALL, ignore)
    assert held(hub) == MADE
    assert hub.bytes_received() == sum(map(len, SHARDS.values()))


def test_a_commit_of_somebody_else_between_two_tries_is_not_taken_for_ours(
    hub: Hub, tmp_path: Path
) -> None:
    made = open_publication(TARGET, KEY, CARD)
    push(made, tmp_path)
    theirs: list[str] = []

    def meddle(nbytes: int) -> None:  # called between tries
        if not theirs and not nbytes:
            theirs.append(existing(hub, tmp_path))

    hub.inject(Fault("commit/main", status=503))
    with pytest.raises(CtcliError, match="somebody else changed it"):
        made.finish(SMALL, meddle)
    assert [hub.repos[REPO].branches["main"]] == theirs


def test_two_runs_on_one_working_branch_do_not_lose_each_others_files(
    hub: Hub, tmp_path: Path
) -> None:
    first, second, *_ = SHARDS
    one, other = (open_publication(TARGET, KEY, CARD) for _ in range(2))
    push(one, tmp_path, first)
    with pytest.raises(CtcliError, match="somebody else changed it"):
        push(other, tmp_path, second)
    assert held(hub, WORK).keys() >= {first}
    assert open_publication(TARGET, KEY, CARD).pushed.keys() == {first}


BREAKS = {
    "refs": Fault("/refs", status=503),
    "create repo": Fault("repos/create", status=500),
    "create repo, no answer": Fault("repos/create", lose_answer=True),
    "create branch": Fault(f"branch/{WORK}", method="POST", status=502),
    "create branch, no answer": Fault(f"branch/{WORK}", method="POST", lose_answer=True),
    "delete branch": Fault(f"branch/{WORK}", method="DELETE", status=429, retry_after=0),
    "delete branch, no answer": Fault(f"branch/{WORK}", method="DELETE", lose_answer=True),
    "preupload": Fault(f"preupload/{WORK}", status=504),
    "batch": Fault("objects/batch", status=429, retry_after=0, times=8),
    "storage": Fault("", path_prefix="/storage/", status=503, times=8),
    "storage, signature too old": Fault("", path_prefix="/storage/", status=403),
    "storage, dropped": Fault("", path_prefix="/storage/", after_bytes=200_000, times=8),
    "storage, wrong bytes": Fault("", path_prefix="/storage/", flip_at=5),
    "verify": Fault("verify", status=500, times=8),
    "commit": Fault(f"commit/{WORK}", status=503, times=3),
    "commit, no answer": Fault(f"commit/{WORK}", lose_answer=True, times=3),
    "last commit": Fault("commit/main", status=500, times=3),
    "last commit, no answer": Fault("commit/main", lose_answer=True),
    "copies": Fault(f"paths-info/{'main'}", lose_answer=True, times=2),
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_request_is_tried_again_and_done_once(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.inject(fault := replace(BREAKS[name]))
    publish(tmp_path)
    assert fault.times == 0
    assert held(hub) == MADE
    assert hub.repos[REPO].branches.keys() == {"main"}
    assert titles(hub) == [TARGET.message, "initial commit"]
    assert len(hub.repos[REPO].commits) == len(["initial", "begin", *SHARDS, "last"])


def test_a_run_that_died_before_it_cleaned_up_is_finished(hub: Hub, tmp_path: Path) -> None:
    hub.inject(Fault(f"branch/{WORK}", method="DELETE", status=503, times=1000))
    with pytest.raises(CtcliError, match="did not deliver"):
        publish(tmp_path)
    commit = hub.repos[REPO].branches["main"]
    hub.heal()
    made = open_publication(TARGET, KEY, CARD)
    assert made.is_finished
    assert made.pushed.keys() == SHARDS.keys()
    assert made.finish(SMALL, ignore) == commit
    assert hub.repos[REPO].branches == {"main": commit}
    with pytest.raises(CtcliError, match="holds"):
        open_publication(TARGET, KEY, CARD)


def test_endless_trouble_ends_the_run_and_the_next_one_goes_on(hub: Hub, tmp_path: Path) -> None:
    made = open_publication(TARGET, KEY, CARD)
    first, second, *_ = SHARDS
    push(made, tmp_path, first)
    hub.inject(Fault("", path_prefix="/storage/", after_bytes=1000, times=1000))
    with pytest.raises(CtcliError, match=f"{REPO}/{second}: the hub did not deliver"):
        push(made, tmp_path, second)
    hub.heal()
    made = open_publication(TARGET, KEY, CARD)
    assert made.pushed.keys() == {first}


PLACES = {
    "refs": Fault("/refs"),
    "create repo": Fault("repos/create"),
    "create branch": Fault(f"branch/{WORK}", method="POST"),
    "preupload": Fault(f"preupload/{WORK}"),
    "batch": Fault("objects/batch"),
    "storage": Fault("", path_prefix="/storage/"),
    "commit": Fault(f"commit/{WORK}"),
    "last commit": Fault("commit/main"),
    "delete branch": Fault(f"branch/{WORK}", method="DELETE"),
}
STATUSES = (400, 401, 403, 404, 412, 429, 500)
ENDS = {(place, status) for place in PLACES for status in STATUSES}
ENDS -= {("delete branch", 404)}  # it is gone, as it should be


@pytest.mark.parametrize(("place", "status"), sorted(ENDS))
def test_no_token_and_no_signature_in_errors(
    hub: Hub, tmp_path: Path, place: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    says = f"no {TOKEN}, Bearer {TOKEN} {hub.elsewhere}/storage?X-Amz-Signature=storage-secret"
    hub.inject(replace(PLACES[place], status=status, retry_after=0, body=says, times=1000))
    with pytest.raises(CtcliError) as refused:
        publish(tmp_path)
    assert f"({status})" in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert "secret" not in str(refused.value)
    assert TOKEN not in caplog.text


def test_no_token_in_what_the_hub_says_of_a_card(hub: Hub) -> None:
    with pytest.raises(CtcliError, match="the hub refuses it") as refused:
        open_publication(TARGET, KEY, f"---\nlicense: {TOKEN}\n---\n".encode())
    assert TOKEN not in str(refused.value)
    assert hub.bytes_received() == 0


def test_killed_again_and_again_it_comes_out_whole(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    for name, content in {**SHARDS, "config.json": b"{}", "README.md": CARD}.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", PUSH, REPO, KEY, str(folder)]
    env = hub.env(tmp_path / "home", TOKEN)
    for nth in KILLED_AT:
        assert run_until(hub, lambda _: True, command, nth=nth, env=env) == -signal.SIGKILL
        assert REPO not in hub.repos or held(hub).keys() <= {".gitattributes"}
    done = subprocess.run(command, env=environment(env), check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, capfd.readouterr().err
    expected = {**SHARDS, "config.json": b"{}", "README.md": CARD}
    assert held(hub) == expected
    assert hub.repos[REPO].branches.keys() == {"main"}
    assert titles(hub) == [TARGET.message, "initial commit"]
