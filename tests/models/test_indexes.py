"""What quantizing takes of published models, by the names in their indexes; reviewed by eye."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.indexes import FOLDER, fates, read_index

MODELS = sorted(path.stem for path in FOLDER.glob("*.txt"))


@pytest.mark.parametrize("model", MODELS)
def test_modules_of_published_models(model: str, tmp_path: Path) -> None:
    config, rows = read_index(FOLDER / f"{model}.txt")
    assert fates(config, rows, tmp_path) == {row.modules: {row.fate} for row in rows}


def test_there_are_many_kinds() -> None:
    types = [read_index(FOLDER / f"{model}.txt")[0].get("model_type") for model in MODELS]
    assert len(set(types)) >= 50
