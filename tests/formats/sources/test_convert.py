"""Checkpoints that other packages wrote keep their numbers as compressed-tensors ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Ctcli
from tests.helpers.decompressing import decompressed
from tests.helpers.sources import SourceCase, source_cases

CASES = [*source_cases("awq"), *source_cases("gptq"), *source_cases("autoround")]
LINEARS = 7  # of the layer that a whole model has
# Why there is no compressed-tensors checkpoint with the same numbers.
REFUSED = {
    "bnb-nf4": "compressed-tensors has no such codes",
    "bnb-fp4": "compressed-tensors has no such codes",
    "bnb-int8": "its scales divided by 127 are rounded",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compressed_tensors_reads_the_same_numbers(
    cli: Ctcli, tmp_path: Path, case: SourceCase
) -> None:
    result = cli("convert", case.checkpoint, tmp_path / "dst")
    assert result.returncode == 0, result.stderr
    found, expected = decompressed(tmp_path / "dst"), case.expected()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name].view(np.uint32), weight.view(np.uint32), name)
    found_by_verify = json.loads(cli("verify", tmp_path / "dst", "--json").stdout)["differences"]
    # Some cases are a single module, and their config.json promises a whole model.
    missing = [each for each in found_by_verify if each["where"] == "config.json"]
    assert found_by_verify == missing, found_by_verify
    assert not missing or len(expected) < LINEARS


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(cli: Ctcli, tmp_path: Path, name: str) -> None:
    result = cli("convert", SourceCase(name).checkpoint, tmp_path / "dst")
    assert result.returncode == 1
    assert REFUSED[name] in result.stderr
    assert not (tmp_path / "dst").exists()
