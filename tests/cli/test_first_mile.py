"""The first mile as a user walks it: looked at, planned, quantized, verified, in any terminal."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

WALK = (
    "ctcli --help",
    "ctcli help quantize",
    "ctcli help schemes",
    "ctcli inspect pylm",
    "ctcli quantize pylm DST --scheme int4",
    "ctcli quantize pylm DST --scheme W4A16",
    "ctcli quantize pylm DST --scheme W4A16 --group-size 64 --dry-run",
    "ctcli quantize pylm DST --scheme W4A16 --group-size 64",
    "ctcli verify DST --against pylm --html DST.html",
    "ctcli inspect DST",
    "ctcli run --init pylm",
)
STATUS = {"ctcli quantize pylm DST --scheme int4": 2, "ctcli quantize pylm DST --scheme W4A16": 1}
TRANSCRIPT = os.environ.get("CTCLI_TRANSCRIPT")


def walked(folder: Path, columns: int, in_terminal: bool) -> dict[str, tuple[int, str]]:
    """Status and output of each command of the walk."""
    shutil.copytree(ROOT / "fixtures/pylm", folder / "pylm")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "TERM": "xterm-256color"}
    found = {}
    for command in WALK:
        words = [sys.executable, "-m", *command.split()]
        main, child = pty.openpty() if in_terminal else os.pipe()
        with subprocess.Popen(words, cwd=folder, env=env, stdout=child, stderr=child) as process:
            os.close(child)
            shown = _read(main)
        found[command] = process.returncode, shown
    if TRANSCRIPT:
        kind = "terminal" if in_terminal else "pipe"
        text = "".join(f"$ {command}\n{shown}\n" for command, (_, shown) in found.items())
        Path(TRANSCRIPT, f"{columns}-{kind}.txt").write_text(text)
    return found


def _read(descriptor: int) -> str:
    shown = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # what Linux gives for the end of a terminal
            piece = b""
        if not piece:
            os.close(descriptor)
            return shown.decode().replace("\r\n", "\n")
        shown += piece


@pytest.mark.parametrize(("columns", "in_terminal"), [(60, True), (100, True), (200, False)])
def test_the_first_mile(columns: int, in_terminal: bool, tmp_path: Path) -> None:
    found = walked(tmp_path, columns, in_terminal)
    for command, (status, shown) in found.items():
        assert status == STATUS.get(command, 0), f"{command}: {shown}"
        assert "Traceback" not in shown
        if not in_terminal:
            assert "\x1b" not in shown, command
        for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines():
            # Names, paths and examples are not broken.
            longest = max(map(len, line.split()), default=0)
            fits = not in_terminal or len(line) <= columns or longest > columns - 40
            is_to_copy = "--init" in command
            assert fits or is_to_copy, f"{command}: {line}"
    assert "W4A16 is INT4" in found[WALK[4]][1]
    assert "smaller-group" in found[WALK[5]][1]
    assert "vllm serve DST" in found[WALK[7]][1]
    assert "--against pylm" in found[WALK[7]][1]
    card = (tmp_path / "DST" / "README.md").read_text()
    assert "vllm serve" in card
    assert "compressed-tensors" in card.partition("\n---\n")[0]
    assert (tmp_path / "DST.html").read_text().startswith("<!doctype html>")
