"""Whatever call fails, and wherever a signal comes: DST is old or new, and the message is true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzzing import checkpoints
from tests.helpers.checkpoints import array, write_checkpoint
from tests.helpers.failing import WAYS, Outcome, walk

COMMANDS = (
    *("reindex", "reindex --link", "reindex --fsync", "fuse-norms", "rotate", "equalize"),
    *("export-bin", "run"),
    *("quantize --scheme FP8_DYNAMIC", "quantize --scheme NVFP4A16"),
)
# All calls of all commands are disturbed by `nox -s calls`; elsewhere, some of those at the end of
# a run, at which DST is replaced.
IS_WHOLE = bool(os.environ.get("CTCLI_EVERY_CALL"))
CASES = [(words, overwrite) for words in COMMANDS for overwrite in (False, True)]
CASES = CASES if IS_WHOLE else [("reindex", True), ("export-bin", True)]
# As where a file system cannot let two folders change places.
NO_EXCHANGE = "from ctcli.storage import exchange\nexchange.renameat2 = lambda *_: 38"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.write(tmp_path / "source")
    (tmp_path / "recipe.toml").write_bytes(checkpoints.RECIPE.replace(b"headers_sha256", b"# "))
    return tmp_path


def arguments(folder: Path, words: str) -> list[str | Path]:
    command, *options = words.split()
    given: list[str | Path] = [folder / "recipe.toml"] if command == "run" else []
    out = "dst.bin" if command == "export-bin" else "dst"
    return [command, *given, folder / "source", folder / out, *options, "--num-workers", "1"]


def put_old(folder: Path, words: str) -> None:
    if words.startswith("export-bin"):
        (folder / "old").write_text("old")
    else:
        write_checkpoint(folder / "old", {"old.safetensors": {"a": array(3)}})


@pytest.mark.parametrize(("words", "overwrite"), CASES)
def test_whatever_call_fails_dst_is_old_or_new(folder: Path, words: str, overwrite: bool) -> None:
    if overwrite:
        put_old(folder, words)
    command = [*arguments(folder, words), *(["--overwrite"] if overwrite else [])]
    last, every = (None, 1) if IS_WHOLE else (24, 6)
    assert_sound(walk(folder, command, WAYS, last=last, every=every))


def test_where_folders_cannot_change_places_dst_is_old_or_new_but_for_a_kill(folder: Path) -> None:
    put_old(folder, "reindex")
    command = [*arguments(folder, "reindex"), "--overwrite"]
    last, every = (None, 1) if IS_WHOLE else (24, 4)
    ways = ("fail", "TERM")
    assert_sound(walk(folder, command, ways, preparation=NO_EXCHANGE, last=last, every=every))


def assert_sound(outcomes: list[Outcome]) -> None:
    assert outcomes
    problems = [str(outcome) for outcome in outcomes if outcome.problems]
    assert not problems, "\n".join([f"{len(problems)} of {len(outcomes)}", *problems])
