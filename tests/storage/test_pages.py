"""Making pages of output files ahead of the bytes."""

from __future__ import annotations

import os
from pathlib import Path

from ctcli.storage.pages import touch_pages

MEGABYTE = 1 << 20


def test_touching_leaves_the_bytes_alone(tmp_path: Path) -> None:
    content = os.urandom(MEGABYTE) + bytes(MEGABYTE)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("r+b") as file:
        assert touch_pages(file.fileno(), 0, len(content))
        assert touch_pages(file.fileno(), MEGABYTE, 5)
    assert path.read_bytes() == content


def test_touching_makes_the_blocks_of_a_hole(tmp_path: Path) -> None:
    with (tmp_path / "file").open("x+b") as file:
        os.ftruncate(file.fileno(), MEGABYTE)
        before = os.fstat(file.fileno()).st_blocks
        assert touch_pages(file.fileno(), 0, MEGABYTE)
        os.fsync(file.fileno())
        assert before < os.fstat(file.fileno()).st_blocks


def test_a_file_that_cannot_be_written_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MEGABYTE))
    with path.open("rb") as file:
        assert not touch_pages(file.fileno(), 0, MEGABYTE)
