"""What people and programs see, with a terminal and without, in a narrow one too."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctcli.console import Terminal, progress
from ctcli.console.progress import Meter
from ctcli.events import Event
from ctcli.units import format_bytes, format_seconds, parse_bytes
from tests.conftest import Ctcli
from tests.helpers.processes import HANG_SECONDS, environment


def run_in_terminal(columns: int, *arguments: str | Path, status: int = 0) -> str:
    """Everything that the command shows on a terminal of that width."""
    main, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ctcli", *map(str, arguments)],
        stdout=child,
        stderr=child,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", "NO_COLOR": "1"},
    )
    os.close(child)
    shown = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # what Linux gives for the end of a terminal
            break
        shown += piece
    os.close(main)
    assert process.wait() == status
    return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_people_get_lines_on_stdout_and_nothing_on_stderr(
    cli: Ctcli, pylm: Path, tmp_path: Path
) -> None:
    done = cli("reindex", pylm, tmp_path / "out")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"reindex: {pylm} -> {tmp_path / 'out'}"
    assert lines[1] == "  fused sets        8"
    assert "\x1b" not in done.stdout


def test_json_is_one_object_on_stdout(cli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    shutil.copytree(pylm, tmp_path / "source")
    (tmp_path / "source" / "old.bin").write_text("")
    done = cli("reindex", tmp_path / "source", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["warnings"] == [
        "left out, since they are weights of other formats: old.bin."
    ]
    assert done.stderr.startswith("warning: left out")


@pytest.mark.parametrize(("redirection", "says"), [(">/dev/full", True), (">&-", False)])
def test_a_stdout_that_cannot_be_written_is_no_traceback(
    pylm: Path, redirection: str, says: bool
) -> None:
    command = f"exec {sys.executable} -m ctcli inspect {pylm} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == int(says)
    assert done.stderr.startswith("error: stdout: the disk") if says else not done.stderr


@pytest.mark.parametrize("words", [(), ("--json",)], ids=str)
def test_a_reader_that_has_seen_enough_changes_no_status(
    pylm: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    gone, stdout = os.pipe()
    os.close(gone)
    command = ("quantize", pylm, tmp_path / "out", "--scheme", "W4A16", "--group-size", "64")
    done = subprocess.run(
        [sys.executable, "-m", "ctcli", *map(str, command), *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=HANG_SECONDS,
        env=environment(),
    )
    os.close(stdout)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").is_dir()


def test_quiet_prints_nothing(ctcli: Ctcli, pylm: Path, tmp_path: Path) -> None:
    done = ctcli("reindex", pylm, tmp_path / "out", "--quiet")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_shows_a_bar_and_then_the_result(
    pylm: Path, tmp_path: Path, columns: int
) -> None:
    shown = run_in_terminal(columns, "reindex", pylm, tmp_path / "out")
    assert "6 of 6 shards" in shown
    assert "shards rewritten  5 of 6" in shown
    assert "-> model-00002-of-00006.safetensors" in shown


def test_a_terminal_breaks_errors_at_words() -> None:
    shown = run_in_terminal(40, "inspect", "./none", status=1)
    assert shown.splitlines() == [
        "error: ./none: no such directory.",
        "next: Name a directory, or a hub id such",
        "      as org/name.",
    ]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2**31), ("4096", 4096), ("7k", 7000)],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5XB", "0", "1e9", "5 GB 2"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def test_sizes_and_durations_are_shown_short() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 2_471_645_608, 10**15)] == [
        "0 B",
        "999 B",
        "1 KB",
        "2.47 GB",
        "1000 TB",
    ]
    assert [format_seconds(s) for s in (0.04, 9.96, 61, 7500)] == [
        "0.0 s",
        "10 s",
        "1 min 1 s",
        "2 h 5 min",
    ]


def test_without_a_terminal_progress_is_a_plain_line_with_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    terminal = Terminal()
    with terminal.progress("reindex", 4_000_000, 3) as advance:
        terminal.notify(Event("shard_written", "a", 1_000_000))
        advance(1_000_000)
    assert re.fullmatch(
        r"reindex: 25 % of 4 MB, 1 of 3 shards, [0-9.]+ [KMGT]?B/s, [0-9.]+ s left\n",
        capsys.readouterr().err,
    )


def test_the_rate_is_that_of_the_last_seconds_and_the_phase_is_told() -> None:
    now = 0.0
    meter = Meter("quantize", 1_000_000, 2, clock=lambda: now)
    meter.notify(Event("compiling"))
    assert meter.phase == "quantize (compiling)"
    meter.notify(Event("preparing", message="learning, 3 %"))
    meter(0)
    assert meter.phase == "quantize (learning, 3 %)"
    for now in range(1, 101):  # noqa: B007 (the clock reads it)
        meter(1000)
    assert (meter.phase, meter.words()) == (
        *("quantize", "10 % of 1 MB, 0 of 2 shards, 1 KB/s, 15 min 0 s left"),
    )
    for now in range(101, 121):  # noqa: B007
        meter(10_000)
    assert "10 KB/s, 1 min 10 s left" in meter.words()
    assert meter.words(50) == "30 % of 1 MB, 0 of 2 shards, 1 min 10 s left"
    now = 131  # nothing has moved for a while
    assert meter.words() == "30 % of 1 MB, 0 of 2 shards"
    for _ in range(2):
        meter.notify(Event("shard_written"))
        meter.notify(Event("shard_pushed"))
    assert meter.phase == "quantize (uploading)"


def test_logs_tell_of_progress_whether_or_not_it_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_EVENTS", 0.01)
    with Terminal(logs=True).progress("quantize", 100) as advance:
        advance(25)
        time.sleep(0.5)
    first, *_, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], last["bytes"]) == ("progress", 25)
    assert last["message"].startswith("25 % of 100 B, ")


@pytest.mark.parametrize(
    "env",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}],
    ids=str,
)
def test_no_locale_ends_a_command(
    ctcli: Ctcli, pylm: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    shutil.copytree(pylm, tmp_path / "modèle")
    shown = ctcli("inspect", tmp_path / "modèle", env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "llama (LlamaForCausalLM)" in shown.stdout
    page = ctcli("help", "schemes", env=env)
    assert (page.returncode, page.stderr) == (0, "")
    refused = ctcli("inspect", f"./{tmp_path.name}/modèlx", env=env)
    assert refused.stderr.startswith("error: ./")
