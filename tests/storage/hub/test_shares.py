"""Parts and clusters whose SRC or DST is on a hub; there, they meet on a branch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from tests.conftest import Ctcli
from tests.helpers.checkpoints import hashes_but_card
from tests.helpers.clusters import Cluster
from tests.helpers.dying import Moment, stop_at
from tests.helpers.hub import Fault, Hub, Request
from tests.helpers.hub.client import DEPRECATED, lead
from tests.helpers.hub.killing import run_until
from tests.helpers.processes import HANG_SECONDS, environment

REPO, MADE = "org/model", "org/made"
DST = f"hf://{MADE}"
QUANTIZE = ("--scheme", "W4A16", "--group-size", "64", "--stream", "--max-disk", "8MB")
TO_HUB = ("quantize", REPO, DST, *QUANTIZE)
pytestmark = DEPRECATED
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def hub(pylm: Path) -> Iterator[Hub]:
    with Hub() as running:
        running.add(REPO, pylm)
        yield running


@pytest.fixture(autouse=True)
def _empty(hub: Hub) -> None:
    hub.repos.pop(MADE, None)
    hub.forget()


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.env(tmp_path / "home", hub.token)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder in which commands are run, which they leave as it was."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def whole(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What one process makes of it on a disk."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "ctcli", "quantize", REPO, str(folder / "out"), *QUANTIZE]
    env = environment(hub.env(folder / "home", hub.token))
    subprocess.run(command, check=True, capture_output=True, env=env, timeout=HANG_SECONDS)
    return hashes_but_card(folder / "out")


@pytest.fixture
def here(hub: Hub, cli: Ctcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: Path) -> Run:
    """Runs `ctcli` in this process."""
    lead(monkeypatch, hub, tmp_path / "home", hub.token)
    monkeypatch.chdir(work)
    return cli


def published(hub: Hub) -> dict[str, str]:
    """Hashes of what the main branch holds, but for the card."""
    found = hub.contents(MADE)
    card = found.pop("README.md")
    assert card.startswith(b"---\n")
    assert b"## Measured errors" in card
    assert b" - |" not in card
    del found[".gitattributes"]
    return {name: sha256(content).hexdigest() for name, content in found.items()}


def assert_made(hub: Hub, whole: Mapping[str, str]) -> None:
    """All is there, by one commit, and nothing else is."""
    repo = hub.repos[MADE]
    assert published(hub) == whole
    assert set(repo.branches) == {"main"}
    assert len([*repo.history(repo.branches["main"])]) == len(["initial", "published"])


def is_commit(request: Request) -> bool:
    return "/commit/ctcli-parts-" in request.path


def test_four_parts_at_once_one_of_which_was_killed(
    hub: Hub, env: dict[str, str], work: Path, whole: Mapping[str, str]
) -> None:
    command = [sys.executable, "-m", "ctcli", *TO_HUB, "--part"]
    assert run_until(hub, is_commit, [*command, "2/4"], nth=2, env=env, cwd=work) == -SIGKILL
    assert set(hub.contents(MADE)) == {".gitattributes"}
    told = [
        subprocess.Popen(
            [*command, part, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(env),
            cwd=work,
        )
        for part in ("1/4", "2/4", "3/4", "4/4")
    ]
    results = []
    for process in told:
        stdout, stderr = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, stderr
        results.append(json.loads(stdout))
    assert_made(hub, whole)
    assert any(result["published"] for result in results)
    assert {name for result in results for name in result["files"]} - {"README.md"} == {*whole}
    assert not [path for path in work.iterdir() if not path.name.endswith(".ctcli-partial")]
    # What the killed one had pushed was not made again.
    assert sum(result["bytes_written"] for result in results) < sum(
        len(content) for content in hub.contents(MADE).values()
    )


@pytest.mark.parametrize("at", ["/commit/main", "/paths-info/main", "/commit/ctcli-parts-"])
def test_the_last_part_killed_while_it_publishes_is_finished_by_another_command(
    at: str, hub: Hub, here: Run, env: dict[str, str], work: Path, whole: Mapping[str, str]
) -> None:
    """The hub goes on with the request at which the process dies."""
    assert here(*TO_HUB, "--part", "1/2").returncode == 0
    command = [sys.executable, "-m", "ctcli", *TO_HUB, "--part", "2/2"]
    status = run_until(hub, lambda r: at in r.path, command, env=env, cwd=work)
    assert status == -SIGKILL
    is_published = set(hub.contents(MADE)) != {".gitattributes"}
    assert is_published == (at == "/commit/main")
    finished = here("finish", DST, "--json")
    if "parts" in at:
        assert "part 2/2 is missing" in finished.stderr
        finished = here(*TO_HUB, "--part", "2/2", "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["published"]
    assert_made(hub, whole)
    again = here("finish", DST)
    assert (again.returncode, "before; there is nothing to do" in again.stdout) == (0, True)
    again = here(*TO_HUB, "--part", "2/2", "--json")
    assert json.loads(again.stdout)["bytes_written"] == 0
    assert_made(hub, whole)


def test_a_part_that_stands_still_until_all_is_published_changes_nothing(
    hub: Hub, here: Run, tmp_path: Path, work: Path, whole: Mapping[str, str]
) -> None:
    assert here(*TO_HUB, "--part", "1/2").returncode == 0
    # With a cache of its own, as on another machine: what it has locked there stays so.
    env = hub.env(tmp_path / "elsewhere", hub.token)
    late = stop_at(Moment("file", 1, SIGSTOP), *TO_HUB, "--part", "2/2", env=env, cwd=work)
    assert here(*TO_HUB, "--part", "2/2").returncode == 0
    assert_made(hub, whole)
    late.send_signal(SIGCONT)
    _, stderr = late.communicate(timeout=HANG_SECONDS)
    assert late.returncode == 0, stderr
    assert_made(hub, whole)
    assert not [*work.iterdir()]


def test_commits_of_others_and_lost_answers_are_borne(
    hub: Hub, here: Run, whole: Mapping[str, str]
) -> None:
    assert here(*TO_HUB, "--part", "2/2").returncode == 0
    before = hub.repos[MADE]
    branch = next(name for name in before.branches if name != "main")

    def others_commit() -> None:
        """What another part does between two commits of this one."""
        repo = hub.repos[MADE]
        head = repo.branches[branch]
        commit = deepcopy(repo.commits[head])
        repo.put(branch, f"{head[:-1]}0", type(commit)(commit.tree, head, "Add another"))

    hub.inject(Fault(f"/commit/{branch}", lose_answer=True), Fault("/commit/main", status=503))
    with hub.on(is_commit, others_commit, nth=2):
        done = here(*TO_HUB, "--part", "1/2")
    hub.heal()
    assert done.returncode == 0, done.stderr
    assert_made(hub, whole)


def test_what_is_refused(hub: Hub, here: Run, work: Path) -> None:
    none = here("finish", DST)
    assert (none.returncode, "no model that" in none.stderr) == (1, False)
    learned = ("--transform-type", "learned", "--rotations", "R1", "--max-memory", "16MB")
    large = here("rotate", REPO, DST, *learned, "--stream", "--cluster", "local:1")
    assert (large.returncode, "learning rotations needs" in large.stderr) == (1, True)
    planned = here(*TO_HUB, "--part", "1/2", "--dry-run", "--json")
    assert json.loads(planned.stdout)["parts_missing"] == ["1/2", "2/2"]
    assert MADE not in hub.repos
    assert here(*TO_HUB, "--part", "1/2").returncode == 0
    (branch,) = set(hub.repos[MADE].branches) - {"main"}
    head = hub.repos[MADE].branches[branch]
    other = here(*TO_HUB, "--part", "2/3")
    assert other.returncode == 1
    assert "the parts there are of another plan: 2 parts there, and 3 parts here" in other.stderr
    assert f"delete the branch {branch}" in other.stderr
    missing = here("finish", DST)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert f"ctcli quantize {REPO} {DST} " in missing.stderr
    assert missing.stderr.splitlines()[-1].endswith("--part 2/2.")
    reader = here(*TO_HUB, "--part", "2/2", env={"HF_TOKEN": hub.reader_token})
    assert reader.returncode == 1
    assert "your token does not allow this (403)" in reader.stderr
    assert hub.repos[MADE].branches == {"main": hub.repos[MADE].branches["main"], branch: head}
    pushed = here("reindex", REPO, work / "out", "--push", MADE, "--part", "1/2")
    assert (pushed.returncode, "for one machine alone" in pushed.stderr) == (2, True)
    hub.repos[MADE].branches.pop(branch)
    gone = here("finish", DST)
    assert (gone.returncode, "no parts of it lie there" in gone.stderr) == (1, True)


def test_a_cluster_that_pushes(
    hub: Hub, here: Run, env: dict[str, str], work: Path, whole: Mapping[str, str]
) -> None:
    without = "import os; os.environ['HF_TOKEN'] = ''"
    with Cluster(work.parent / "cluster", env) as cluster:
        cluster.add()
        lacking = cluster.add(without)
        cluster.wait()
        refused = here(*TO_HUB, "--cluster", cluster.address)
        assert refused.returncode == 1
        (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
        assert line.endswith(f"{MADE}: publishing needs a token.")
        assert set(hub.repos[MADE].branches) == {"main"}
        lacking.kill()
        cluster.add()
        cluster.wait()
        done = here(*TO_HUB, "--cluster", cluster.address)
        assert done.returncode == 0, done.stderr
        assert not [*cluster.folder.rglob("*.safetensors")]
        assert hub.token not in cluster.log()
        verify = ("verify", DST, "--against", REPO, "--json")
        many, one = (here(*verify, *where) for where in (("--cluster", cluster.address), ()))
    assert_made(hub, whole)
    assert f"hf://{MADE}, branch main, commit" in done.stdout
    assert [told.returncode for told in (many, one)] == [0, 0], many.stderr
    found, expected = ({**json.loads(told.stdout), "seconds": 0} for told in (many, one))
    assert found == expected
    assert not [*work.iterdir()]


def test_parts_and_workers_stream_what_their_files_need(
    hub: Hub, here: Run, env: dict[str, str], work: Path, whole: Mapping[str, str]
) -> None:
    words = ("quantize", REPO, work / "out", *QUANTIZE)
    assert here(*words, "--part", "1/2").returncode == 0
    last = "model-00006-of-00006.safetensors"
    size = len(hub.contents(REPO)[last])
    assert hub.bytes_sent(f"/{last}") < size / 2, "of other shards, the headers alone"
    assert here(*words, "--part", "2/2").returncode == 0
    assert hub.bytes_sent(f"/{last}") >= size
    assert hashes_but_card(work / "out") == whole
    hub.forget()
    many = ("quantize", REPO, work / "many", *QUANTIZE, "--cluster", "local:2")
    done = subprocess.run(
        [sys.executable, "-m", "ctcli", *map(str, many)],
        env=environment(env),
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert hashes_but_card(work / "many") == whole
    assert sorted(path.name for path in work.iterdir()) == ["many", "out"]
    cached = [*(work.parent / "home").rglob("*.safetensors")]
    assert not cached, "nothing fills the hub cache"
