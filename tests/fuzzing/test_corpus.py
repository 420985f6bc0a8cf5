"""What the fuzzer once found ends in the expected error, or well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzzing.targets import CORPUS, targets

FOUND = sorted(CORPUS.iterdir())


def test_every_target_reads_its_sound_inputs(tmp_path: Path) -> None:
    every = targets(tmp_path)
    for target in every.values():
        for content in target.seeds:
            target.read(tmp_path, content)
    assert {path.name.partition("-")[0] for path in FOUND} <= every.keys()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_once_is_read(tmp_path: Path, path: Path) -> None:
    targets(tmp_path)[path.name.partition("-")[0]].read(tmp_path, path.read_bytes())
