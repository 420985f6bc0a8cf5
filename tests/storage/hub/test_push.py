"""`--push` and `hf://`: the output goes to a hub while it is made, and is seen there when whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import Ctcli
from tests.fuzzing import checkpoints
from tests.helpers.checkpoints import file_hashes, hashes_but_card
from tests.helpers.hub import Fault, Hub
from tests.helpers.hub.killing import run_until
from tests.helpers.processes import HANG_SECONDS, environment
from tests.helpers.watching import Watch
from tests.storage.hub.test_stream import COMMANDS, REPO, SHARDS, source  # noqa: F401 (a fixture)

TOKEN = "hf_" + "Qd3" * 11 + "T"
MADE = "org/made"
KILLED_AT = (10, 20, 24, 14, 6)  # requests of each run before it is killed
QUANTIZE = COMMANDS["quantize"]


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:  # noqa: F811
    with Hub() as running:
        running.token = TOKEN
        running.add(REPO, source)
        yield running


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.env(tmp_path / "home", TOKEN)


@pytest.fixture
def undisturbed(ctcli: Ctcli, tmp_path: Path, env: dict[str, str]) -> dict[str, str]:
    """Hashes of what a local run makes."""
    done = ctcli(*QUANTIZE, REPO, tmp_path / "undisturbed", env=env)
    assert not done.returncode, done.stderr
    return hashes_but_card(tmp_path / "undisturbed")


def published(hub: Hub) -> dict[str, str]:
    """Hashes of the files on the repository's main branch, but for its card."""
    found = hub.contents(MADE)
    assert found.pop("README.md").startswith(b"---\n")
    found.pop(".gitattributes", None)
    return {name: sha256(content).hexdigest() for name, content in found.items()}


def branches(hub: Hub) -> set[str]:
    return set(hub.repos[MADE].branches)


def collected(hub: Hub) -> int:
    """How many shards lie on the working branch."""
    if MADE not in hub.repos:
        return 0
    working = [name for name in branches(hub) if name != "main"]
    return sum(n.endswith(".safetensors") for name in working for n in hub.contents(MADE, name))


def test_a_pushed_checkpoint_is_the_local_one_and_comes_in_one_commit(
    hub: Hub, ctcli: Ctcli, tmp_path: Path, env: dict[str, str], undisturbed: Mapping[str, str]
) -> None:
    done = ctcli(*QUANTIZE, REPO, tmp_path / "out", "--push", MADE, "--json", env=env)
    assert not done.returncode, done.stderr
    assert hashes_but_card(tmp_path / "out") == undisturbed == published(hub)
    assert branches(hub) == {"main"}
    assert json.loads(done.stdout)["push"]["commit"] == hub.repos[MADE].branches["main"]
    card = hub.contents(MADE)["README.md"].decode()
    assert "base_model: org/model" in card
    assert "quantize --scheme NVFP4A16 org/model" in card
    local = (tmp_path / "out" / "README.md").read_text()
    assert card.partition("## Measured")[2] == local.partition("## Measured")[2] != ""
    assert " - |" not in card


@pytest.mark.parametrize("options", [("--stream",), ()])
def test_a_checkpoint_can_go_to_the_hub_only(
    hub: Hub,
    ctcli: Ctcli,
    tmp_path: Path,
    env: dict[str, str],
    undisturbed: Mapping[str, str],
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    done = ctcli(*QUANTIZE, REPO, f"hf://{MADE}", *options, env=env)
    assert not done.returncode, done.stderr
    assert published(hub) == undisturbed
    assert not file_hashes(tmp_path / "work")
    assert done.stdout.startswith(f"quantize: {REPO} -> hf://{MADE}\n")


def test_killed_at_random_it_comes_out_whole_within_its_disk(
    hub: Hub, tmp_path: Path, env: dict[str, str], undisturbed: Mapping[str, str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    watch = Watch(work, tmp_path / "seen")
    arguments = (*QUANTIZE, REPO, f"hf://{MADE}", "--stream", "--max-disk", "14MB")
    command = watch.command(*arguments)
    for nth in KILLED_AT:
        status = run_until(hub, lambda _: True, command, nth=nth, env=env, cwd=work)
        assert status == -signal.SIGKILL
        assert MADE not in hub.repos or not set(hub.contents(MADE)) - {".gitattributes"}
    subprocess.run(command, env=environment(env), cwd=work, check=True, timeout=HANG_SECONDS)
    assert published(hub) == undisturbed
    assert 0 < watch.bytes <= 14_100_000, "beside files there is the journal"
    assert branches(hub) == {"main"}


@pytest.mark.parametrize("left", range(5))
def test_killed_at_its_last_requests_it_has_published_nothing_or_all(
    hub: Hub, tmp_path: Path, env: dict[str, str], left: int
) -> None:
    """The hub goes on with the request at which the process dies."""
    small = checkpoints.write(tmp_path / "small")
    command = [sys.executable, "-m", "ctcli", "reindex", str(small)]
    hub.forget()
    subprocess.run([*command, "hf://org/whole"], env=environment(env), cwd=tmp_path, check=True)
    whole = hub.contents("org/whole")
    nth = len(hub.requests()) - left
    command += [f"hf://{MADE}"]
    status = run_until(hub, lambda _: True, command, nth=nth, env=env, cwd=tmp_path)
    assert status == -signal.SIGKILL
    is_asked = bool(hub.requests(f"/api/models/{MADE}/commit/main"))
    assert is_asked == (left < 2), "the last request but one publishes"
    found = hub.contents(MADE)
    assert found.keys() == (whole.keys() if is_asked else {".gitattributes"})
    done = subprocess.run(
        command, env=environment(env), cwd=tmp_path, check=False, capture_output=True, text=True
    )
    # Once the working branch is gone, nothing tells that it was this command.
    assert done.returncode == (left == 0), done.stderr
    assert left or f"{MADE}: its branch main holds" in done.stderr
    found = hub.contents(MADE)
    card, ours = whole.pop("README.md"), found.pop("README.md")
    assert card.replace(b"org/whole", MADE.encode()) == ours
    assert found == whole
    assert branches(hub) == {"main"}
    history = hub.repos[MADE].history(hub.repos[MADE].branches["main"])
    assert len([*history]) == len(["initial", "published"])


def test_another_machine_continues_when_it_is_told_to(
    hub: Hub, tmp_path: Path, env: dict[str, str], undisturbed: Mapping[str, str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    arguments = (*QUANTIZE, REPO, f"hf://{MADE}", "--stream")
    command = [sys.executable, "-m", "ctcli", *arguments]
    status = run_until(hub, lambda _: collected(hub) >= 2, command, env=env, cwd=first)
    assert status == -signal.SIGKILL
    shutil.rmtree(first)
    stale = second / ".org--made.ctcli-partial" / "journal"
    stale.parent.mkdir()
    (stale.parent / "lock").touch()
    stale.write_text('"the key of another job"\n')
    refused = subprocess.run(
        command, env={**os.environ, **env}, cwd=second, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "Give --resume-from-hub" in refused.stderr
    hub.forget()
    subprocess.run(
        [*command, "--resume-from-hub"], env={**os.environ, **env}, cwd=second, check=True
    )
    assert published(hub) == undisturbed
    every = sum(path.stat().st_size for path in (tmp_path / "undisturbed").glob("*.safetensors"))
    assert 0 < hub.bytes_received() < every, "what was there did not go up again"


def test_a_dry_run_changes_nothing_and_asks_whether_it_could_push(
    hub: Hub, ctcli: Ctcli, tmp_path: Path, env: dict[str, str]
) -> None:
    done = ctcli(*QUANTIZE, REPO, tmp_path / "out", "--push", MADE, "--dry-run", env=env)
    assert not done.returncode, done.stderr
    assert f"hf://{MADE}, branch main" in done.stdout
    assert MADE not in hub.repos
    again = ctcli(*QUANTIZE, REPO, tmp_path / "out", "--push", REPO, "--dry-run", env=env)
    assert again.returncode == 1
    assert "Give --overwrite to replace them" in again.stderr


def test_events_are_lines_of_json_without_secrets(
    hub: Hub, ctcli: Ctcli, tmp_path: Path, env: dict[str, str]
) -> None:
    options = ("--stream", "--push", MADE, "--log-format", "json")
    done = ctcli(*QUANTIZE, REPO, tmp_path / "out", *options, env=env)
    assert not done.returncode, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "done"
    for kind in ("shard_fetched", "shard_written", "shard_pushed"):
        assert kinds.count(kind) == SHARDS
        assert all(e["bytes"] > 0 and e["name"] for e in events if e["event"] == kind)
    recipe = (tmp_path / "out" / "ctcli_recipe.toml").read_text()
    card = hub.contents(MADE)["README.md"].decode()
    assert not any(TOKEN in text for text in (done.stderr, done.stdout, recipe, card))


def test_expected_errors_are_events_too(ctcli: Ctcli, tmp_path: Path, env: dict[str, str]) -> None:
    done = ctcli(*QUANTIZE, "org/none", tmp_path / "out", "--log-format", "json", env=env)
    assert done.returncode == 1
    (event,) = map(json.loads, done.stderr.splitlines())
    assert event["event"] == "failed"
    assert "org/none" in event["message"]


def test_an_interruption_is_an_event_too(hub: Hub, tmp_path: Path, env: dict[str, str]) -> None:
    comes = threading.Event()
    hub.inject(Fault(".safetensors", path_prefix="/cdn/", hold=comes, held_at=1_000_000))
    options = ("--stream", "--push", MADE, "--log-format", "json")
    with subprocess.Popen(
        [sys.executable, "-m", "ctcli", *QUANTIZE, REPO, str(tmp_path / "out"), *options],
        env={**os.environ, **env},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        lines = [process.stderr.readline()]
        process.send_signal(signal.SIGTERM)
        lines += process.stderr.readlines()
    comes.set()
    assert process.returncode == 128 + signal.SIGTERM
    first, *_, last = map(json.loads, lines)
    assert first["event"] == "started"
    assert last["event"] == "failed"
    assert "The same command continues" in last["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{out}", "--private"), "--private goes with --push"),
        (("{out}", "--branch", "b", "--resume-from-hub"), "--branch, --resume-from-hub goes with"),
        (("{out}", "--push", "made"), "'made' is no repository"),
        (("hf://made",), "'made' is no repository"),
        (("hf://org/a", "--push", "org/b"), "--push is for a DST on this disk"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(
    arguments: tuple[str, ...],
    words: str,
    source: Path,  # noqa: F811
    ctcli: Ctcli,
    tmp_path: Path,
) -> None:
    done = ctcli("reindex", source, *(a.format(out=tmp_path / "out") for a in arguments))
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
