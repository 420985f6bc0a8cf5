"""Whatever call fails, and wherever a signal comes: DST is old or new, and the message is true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzzing import checkpoints
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint
from tests.helpers.failing import BEGUN, WAYS, Outcome, walk
from tests.helpers.processes import ROOT
from tests.helpers.sources import SourceCase

SOURCES = {
    "dequantize": SourceCase("fp8-llama").checkpoint,
    "convert": SourceCase("gptq-llama").checkpoint,
    "export-bin --tokenizer": ROOT / "fixtures" / "pylm",  # its tokenizer is one that can go along
}
COMMANDS = (
    *("reindex", "reindex --link", "reindex --fsync", "fuse-norms", "rotate", "equalize", "run"),
    *("quantize --scheme FP8_DYNAMIC", "quantize --scheme NVFP4A16"),
    *("quantize --scheme W4A16 --group-size 32 --fsync", "dequantize", "convert"),
    *("export-bin", "export-bin --fsync", "export-bin --tokenizer"),
)
# `nox -s calls` disturbs all calls of all commands: an error, of one kind or the other, a signal to
# end, one or the other, and a kill. Elsewhere, some of those at the end of a run, at which DST is
# replaced.
IS_WHOLE = bool(os.environ.get("CTCLI_EVERY_CALL"))
STATES = [*((begun, False) for begun in BEGUN), ("", True), ("published", True)]
CASES = [(words, *state) for words in COMMANDS for state in STATES]
CASES = CASES if IS_WHOLE else [("reindex", "", True), ("export-bin --tokenizer", "half-way", True)]
# As where a file system cannot let two folders change places.
NO_EXCHANGE = "from ctcli.storage import exchange\nexchange.renameat2 = lambda *_: 38"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.write(tmp_path / "source")
    (tmp_path / "recipe.toml").write_bytes(checkpoints.RECIPE.replace(b"headers_sha256", b"# "))
    return tmp_path


def arguments(folder: Path, words: str, overwrite: bool) -> list[str | Path]:
    command, *options = words.split()
    given: list[str | Path] = [folder / "recipe.toml"] if command == "run" else []
    source = SOURCES.get(words, folder / "source")
    out = "dst.bin" if command == "export-bin" else "dst"
    options += ["--overwrite"] if overwrite else []
    return [command, *given, source, folder / out, *options, "--num-workers", "1"]


def put_old(folder: Path, words: str) -> None:
    if words.startswith("export-bin"):
        (folder / "old").write_text("old")
    else:
        write_checkpoint(folder / "old", {"old.safetensors": {"a": array(3)}})


@pytest.mark.parametrize(("words", "begun", "overwrite"), CASES)
def test_whatever_call_fails_dst_is_old_or_new(
    folder: Path, words: str, begun: str, overwrite: bool
) -> None:
    if overwrite:
        put_old(folder, words)
    last, every = (None, 2) if IS_WHOLE else (24, 6)
    command = arguments(folder, words, overwrite)
    source = SOURCES.get(words, folder / "source")
    before = file_hashes(source)
    assert_sound(walk(folder, command, WAYS, begun=begun, last=last, every=every))
    assert file_hashes(source) == before


def test_where_folders_cannot_change_places_dst_is_old_or_new_but_for_a_kill(folder: Path) -> None:
    put_old(folder, "reindex")
    command = arguments(folder, "reindex", True)
    last, every = (None, 1) if IS_WHOLE else (24, 4)
    ways = ("fail", "TERM")
    assert_sound(walk(folder, command, ways, preparation=NO_EXCHANGE, last=last, every=every))


def assert_sound(outcomes: list[Outcome]) -> None:
    assert outcomes
    print(f"{len(outcomes)} runs")  # noqa: T201 (the figures of `nox -s calls`)
    problems = [str(outcome) for outcome in outcomes if outcome.problems]
    assert not problems, "\n".join([f"{len(problems)} of {len(outcomes)}", *problems])
