"""`ctcli` on a model hub: the real command and the real hub client, a hub of our own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from threading import Event
from typing import Any

import pytest

from tests.conftest import Ctcli
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint, write_index, write_raw
from tests.helpers.hub import Fault, Hub
from tests.helpers.processes import HANG_SECONDS

REPO = "org/model"
WEIGHTS = ".safetensors"
RECIPE = "ctcli_recipe.toml"
HEADER_READ = 64 * 1024
REDIRECT = 1000  # at most so many bytes tell where a file's content is
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def run(ctcli: Ctcli, hub: Hub, tmp_path: Path) -> Run:
    """Runs `ctcli reindex org/model DST` against the hub, with a cache in `home`."""

    def reindex(
        *arguments: str | Path, repo: str = REPO, token: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        settings = hub.env(tmp_path / "home", token) | env
        return ctcli("reindex", repo, *arguments, env=settings)

    return reindex


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def source(tmp_path: Path, pylm: Path) -> Path:
    """The bundled checkpoint with an index that says something of itself."""
    folder = tmp_path / "source"
    shutil.copytree(pylm, folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_parameters"] = 3_000_000
    path.write_text(json.dumps(index))
    return folder


def with_config(source: Path, folder: Path, version: int) -> Path:
    """A copy of a checkpoint, told from others by its config."""
    shutil.copytree(source, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "version": version}))
    return folder


def large(folder: Path) -> Path:
    """A checkpoint in one file of 16 MB."""
    return write_checkpoint(folder, {"model.safetensors": {"a": array(4_000_000)}}, index=False)


def without_recipe(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in file_hashes(folder).items() if name != RECIPE}


def locally(ctcli: Ctcli, source: Path, *options: str) -> dict[str, str]:
    """What reindex makes of a local directory."""
    destination = source.with_name(f"{source.name}-reindexed")
    done = ctcli("reindex", source, destination, *options)
    assert done.returncode == 0, done.stderr
    return without_recipe(destination)


def assert_error(done: subprocess.CompletedProcess[str], problem: str, hint: str) -> None:
    """Exit status 1, one line that says what is wrong and one that says what to do."""
    assert done.returncode == 1
    error, following = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert problem in error
    assert following.startswith("next: ")
    assert hint in following
    assert not done.stdout


@pytest.mark.parametrize("revision", [None, "main", "dev/next", "first commit"])
def test_hub_source_gives_the_files_of_a_local_one_and_names_the_commit(
    run: Run, ctcli: Ctcli, hub: Hub, source: Path, tmp_path: Path, revision: str | None
) -> None:
    folders = [with_config(source, tmp_path / f"version{n}", n) for n in range(3)]
    branches = ("main", "main", "dev/next")
    shas = [hub.add(REPO, folder, branch=b) for folder, b in zip(folders, branches, strict=True)]
    version = {"first commit": 0, "dev/next": 2}.get(revision or "main", 1)
    name = shas[0] if revision == "first commit" else revision
    done = run(tmp_path / "out", *(["--revision", name] if name else []), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == shas[version]
    assert without_recipe(tmp_path / "out") == locally(ctcli, folders[version])
    local = tomllib.loads((tmp_path / f"version{version}-reindexed" / RECIPE).read_text())
    recipe = tomllib.loads((tmp_path / "out" / RECIPE).read_text())
    expected = {**local["source"], "name": REPO, "commit": shas[version]}
    assert recipe == {**local, "source": expected}


def test_a_second_run_sends_no_weights_again(
    run: Run, hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.add(REPO, source)
    assert run(tmp_path / "first").returncode == 0
    weights = sum(path.stat().st_size for path in source.glob(f"*{WEIGHTS}"))
    assert weights <= hub.bytes_sent(WEIGHTS) < weights + 6 * (HEADER_READ + 2 * REDIRECT)
    hub.forget()
    done = run(tmp_path / "second", "--json")
    assert json.loads(done.stdout)["bytes_to_download"] == 0
    assert hub.bytes_sent(WEIGHTS) == 0
    assert file_hashes(tmp_path / "second") == file_hashes(tmp_path / "first")


@pytest.mark.parametrize("revision", ["main", "commit"])
def test_offline_gives_the_same_from_the_cache(
    run: Run, hub: Hub, source: Path, tmp_path: Path, revision: str
) -> None:
    commit = hub.add(REPO, source)
    assert run(tmp_path / "online").returncode == 0
    hub.forget()
    options = ["--revision", commit] if revision == "commit" else []
    done = run(tmp_path / "offline", *options, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "offline") == file_hashes(tmp_path / "online")
    assert not hub.requests()


def test_offline_without_a_cache_is_an_error_that_names_offline_mode(
    run: Run, hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.add(REPO, source)
    done = run(tmp_path / "out", HF_HUB_OFFLINE="1")
    assert_error(done, f"{REPO}: not in the hub cache", "HF_HUB_OFFLINE")
    assert not hub.requests()


def test_dry_run_asks_for_headers_only(run: Run, hub: Hub, tmp_path: Path) -> None:
    shards = {f"model-{n}{WEIGHTS}": {f"a{n}": array(1_000_000, seed=n)} for n in range(3)}
    source = write_checkpoint(tmp_path / "source", shards)
    hub.add(REPO, source)
    done = run(tmp_path / "out", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.bytes_sent(WEIGHTS) < 3 * (HEADER_READ + REDIRECT)
    reads = [r.range for r in hub.requests(WEIGHTS) if r.path.startswith("/cdn/")]
    assert reads == [f"bytes=0-{HEADER_READ - 1}"] * 3
    to_download = sum(path.stat().st_size for path in source.glob(f"*{WEIGHTS}"))
    assert json.loads(done.stdout)["bytes_to_download"] == to_download
    assert not list(tmp_path.glob("*out*"))
    assert not list((tmp_path / "home").rglob(f"*{WEIGHTS}"))


def test_a_header_longer_than_one_read_is_read_in_ranges_and_no_further(
    run: Run, ctcli: Ctcli, hub: Hub, tmp_path: Path
) -> None:
    tensors = {f"model.layers.{n}.{'long' * 20}.weight": array(500, seed=n) for n in range(2000)}
    source = write_checkpoint(tmp_path / "source", {"model.safetensors": tensors}, index=False)
    hub.add(REPO, source)
    header = int.from_bytes((source / "model.safetensors").read_bytes()[:8], "little")
    assert header > HEADER_READ
    assert run(tmp_path / "out", "--dry-run").returncode == 0
    reads = [r.range for r in hub.requests(WEIGHTS) if r.path.startswith("/cdn/")]
    assert reads == [f"bytes=0-{HEADER_READ - 1}", f"bytes={HEADER_READ}-{8 + header - 1}"]
    assert hub.bytes_sent(WEIGHTS) < 8 + header + 2 * REDIRECT
    assert run(tmp_path / "out").returncode == 0
    assert without_recipe(tmp_path / "out") == locally(ctcli, source)


def test_bad_headers_are_all_found_before_any_shard_is_downloaded(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    names = [f"model-{n}{WEIGHTS}" for n in range(3)]
    source = write_checkpoint(tmp_path / "source", {names[0]: {"t0": array(1_000_000)}})
    entry: dict[str, Any] = {"dtype": "F32", "shape": [1_000_000], "data_offsets": [0, 4_000_000]}
    write_raw(source / names[1], {"t1": entry}, bytes(3_999_999))
    write_raw(source / names[2], b"{not json", bytes(1_000_000))
    write_index(source, {f"t{n}": name for n, name in enumerate(names)})
    hub.add(REPO, source)
    done = run(tmp_path / "out")
    assert done.returncode == 1
    first, second, hint = done.stderr.splitlines()
    assert first.startswith(f"error: {names[1]}: ")
    assert "truncated" in first
    assert second.startswith(f"error: {names[2]}: ")
    assert hint.startswith("next: ")
    assert hub.bytes_sent(WEIGHTS) < 3 * (HEADER_READ + REDIRECT)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("repo", "options", "token", "problem", "hint"),
    [
        ("org/none", [], None, "org/none: neither a directory", "spelling"),
        ("org/none", [], Hub.token, "org/none: neither a directory", "spelling"),
        ("org/private", [], None, "org/private: neither a directory", "HF_TOKEN"),
        (REPO, ["--revision", "v9"], None, "no revision 'v9'", "branch, a tag or a commit"),
        ("org/gated", [], None, "org/gated", "HF_TOKEN"),
        ("org/gated", [], "hf_of_somebody_else", "gated", "Ask for access"),
    ],
)
def test_what_the_hub_does_not_give_is_named(
    run: Run,
    hub: Hub,
    source: Path,
    tmp_path: Path,
    repo: str,
    options: list[str],
    token: str | None,
    problem: str,
    hint: str,
) -> None:
    hub.add(REPO, source)
    hub.add("org/private", source, private=True)
    hub.add("org/gated", source, gated=True)
    done = run(tmp_path / "out", *options, repo=repo, token=token)
    assert_error(done, problem, hint)
    assert "hf_of_somebody_else" not in done.stderr
    assert not list(tmp_path.glob("*out*"))


def test_the_good_token_opens_a_gated_repo_and_appears_nowhere(
    run: Run, ctcli: Ctcli, hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.add(REPO, source, gated=True)
    done = run(tmp_path / "out", "--json", token=hub.token)
    assert done.returncode == 0, done.stderr
    assert without_recipe(tmp_path / "out") == locally(ctcli, source)
    assert hub.token not in done.stdout + done.stderr
    written = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert not any(hub.token.encode() in content for content in written)
    assert {r.authorized for r in hub.requests() if r.path.startswith("/cdn/")} == {False}


def test_a_hub_out_of_reach_is_an_error(run: Run, hub: Hub, source: Path, tmp_path: Path) -> None:
    hub.add(REPO, source)
    hub.close()
    assert_error(run(tmp_path / "out"), f"{REPO}: the hub did not deliver", "")


def test_a_hub_that_accepts_but_never_answers_is_an_error(
    run: Run, silent_hub: str, tmp_path: Path
) -> None:
    done = run(tmp_path / "out", HF_ENDPOINT=silent_hub, HF_HUB_ETAG_TIMEOUT="1")
    assert_error(done, f"{REPO}: the hub did not deliver", "")


def test_a_cache_that_cannot_be_written_is_an_error(
    run: Run, hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.add(REPO, source)
    (tmp_path / "file").touch()
    done = run(tmp_path / "out", HF_HUB_CACHE=str(tmp_path / "file" / "cache"))
    assert_error(done, "Not a directory", "")
    assert not (tmp_path / "out").exists()


def test_a_broken_connection_is_resumed_by_a_range_request(
    run: Run, ctcli: Ctcli, hub: Hub, tmp_path: Path
) -> None:
    source, broken_at = large(tmp_path / "source"), 12_000_000
    size = (source / "model.safetensors").stat().st_size
    hub.add(REPO, source)
    hub.inject(Fault(WEIGHTS, after_bytes=broken_at))
    done = run(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert without_recipe(tmp_path / "out") == locally(ctcli, source)
    reads = [r.range for r in hub.requests(WEIGHTS) if r.path.startswith("/cdn/")]
    header, whole, resumed = reads
    assert header == f"bytes=0-{HEADER_READ - 1}"
    assert whole is None
    assert resumed is not None
    start = int(resumed.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= broken_at
    sent = HEADER_READ + broken_at + size - start
    assert sent <= hub.bytes_sent(WEIGHTS) < sent + 3 * REDIRECT


def test_after_a_hub_that_kept_breaking_the_same_command_goes_on(
    run: Run, ctcli: Ctcli, hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.add(REPO, source)
    last = "model-00006-of-00006.safetensors"  # the smallest, so the last one with one worker
    hub.inject(Fault(last, after_bytes=HEADER_READ + 1000, times=1000))
    failed = run(tmp_path / "out", "--num-workers", "1", "--quiet")
    assert_error(failed, last, "same command")
    assert not (tmp_path / "out").exists()
    hub.heal()
    hub.forget()
    done = run(tmp_path / "out", "--num-workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files_continued"] > 0
    assert {Path(r.path).name for r in hub.requests(WEIGHTS)} == {last}
    assert without_recipe(tmp_path / "out") == locally(ctcli, source)


def test_a_branch_that_moved_after_a_failure_is_not_mixed_with_what_was_left(
    run: Run, ctcli: Ctcli, hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.add(REPO, source, gated=True)
    hub.inject(Fault("tokenizer.json", method="GET", status=404, times=1000))
    failed = run(tmp_path / "out", "--num-workers", "1", "--quiet", token=hub.token)
    assert_error(failed, "tokenizer.json", "same command")
    assert hub.token not in failed.stderr
    assert list((tmp_path / ".out.ctcli-partial" / "checkpoint").glob(f"*{WEIGHTS}"))
    hub.heal()
    moved = with_config(source, tmp_path / "moved", 2)
    (moved / "model-00004-of-00006.safetensors").write_bytes(
        (source / "model-00004-of-00006.safetensors").read_bytes()[:-8] + bytes(8)
    )
    hub.add(REPO, moved)
    done = run(tmp_path / "out", "--json")
    assert json.loads(done.stdout)["files_continued"] == 0
    assert without_recipe(tmp_path / "out") == locally(ctcli, moved)


def test_strays_and_other_weights_are_not_downloaded(
    run: Run, ctcli: Ctcli, hub: Hub, source: Path, tmp_path: Path
) -> None:
    strays = ("pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.pth")
    (source / "original").mkdir()
    for name in strays:
        (source / name).write_bytes(bytes(100_000))
    hub.add(REPO, source)
    done = run(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for name in strays:
        assert name in done.stderr
        assert not hub.requests(name)
    assert without_recipe(tmp_path / "out") == locally(ctcli, source)


def test_link_shares_an_unchanged_shard_with_the_cache_and_nothing_else(
    run: Run, ctcli: Ctcli, hub: Hub, source: Path, tmp_path: Path
) -> None:
    commit = hub.add(REPO, source)
    assert run(tmp_path / "out", "--link").returncode == 0
    (cache,) = (tmp_path / "home").rglob(commit)
    shared = [p.name for p in (tmp_path / "out").iterdir() if p.stat().st_nlink > 1]
    unchanged = "model-00004-of-00006.safetensors"
    assert shared == [unchanged]
    assert not (tmp_path / "out" / unchanged).is_symlink()
    assert (tmp_path / "out" / unchanged).samefile(cache / unchanged)
    assert without_recipe(tmp_path / "out") == locally(ctcli, source)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(WEIGHTS, path_prefix="/cdn/", hold=Event(), held_at=3 * HEADER_READ),
        Fault(WEIGHTS, path_prefix="/cdn/", status=503, retry_after=600),
    ],
    ids=["a shard that does not come", "between tries for a header"],
)
def test_ctrl_c_during_a_download_ends_it_at_once(hub: Hub, tmp_path: Path, fault: Fault) -> None:
    """At once: before the hub goes on, and before the pause is over that it asks for."""
    hub.add(REPO, large(tmp_path / "source"))
    hub.inject(replace(fault))
    process = subprocess.Popen(
        [sys.executable, "-m", "ctcli", "reindex", REPO, str(tmp_path / "out")],
        env={**os.environ, **hub.env(tmp_path / "home")},
        stderr=subprocess.PIPE,
        text=True,
    )
    while hub.bytes_sent(WEIGHTS) <= fault.held_at:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(SIGINT)
    _, errors = process.communicate(timeout=HANG_SECONDS)
    if fault.hold:
        fault.hold.set()
    assert process.returncode == 128 + SIGINT
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
