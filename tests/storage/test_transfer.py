"""Bytes to a file at their places, however few of them one call takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ctcli.storage import transfer
from ctcli.storage.transfer import write_pieces


@pytest.mark.parametrize("most", [1, 7, 1 << 20])
def test_pieces_are_written_at_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    real, calls = os.pwritev, list[int]()

    def some(target: int, pieces: Sequence[memoryview], offset: int) -> int:
        """Write as a disk does that takes so many bytes at once."""
        calls.append(len(pieces))
        content = b"".join(pieces)[:most]
        return real(target, [content], offset)

    monkeypatch.setattr(os, "pwritev", some)
    monkeypatch.setattr(transfer, "_MOST_PIECES", 5)
    content = np.random.default_rng(0).bytes(300)
    ends = [0, 3, 3, 20, 21, 50, 90, 100, 130, 131, 200]
    pieces = [(a, memoryview(content)[a:b]) for a, b in pairwise(ends)]
    gap = (250, memoryview(content)[250:])
    path = tmp_path / "made"
    with path.open("wb") as file:
        write_pieces(file.fileno(), [*pieces[5:], gap, *pieces[:5]])
        write_pieces(file.fileno(), [])
    assert path.read_bytes() == content[:200] + bytes(50) + content[250:]
    if most > 300:
        assert calls == [5, 5, 1], "what lies side by side is written at once"
