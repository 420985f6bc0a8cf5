"""Checkpoints that other packages wrote keep their numbers as compressed-tensors ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ctcli
from tests.helpers.decompressing import decompressed
from tests.helpers.quantizing import tensors_of
from tests.helpers.sources import SourceCase, source_cases

# Why there is no compressed-tensors checkpoint with the same numbers.
REFUSED = {
    "bnb-nf4": "compressed-tensors has no such codes",
    "bnb-fp4": "compressed-tensors has no such codes",
    "bnb-int8": "its scales divided by 127 are rounded",
    "gptq-v2-order": "its columns are in another order (desc_act)",
}

FORMATS = ("awq", "gptq", "autoround")
CASES = [case for form in FORMATS for case in source_cases(form) if case.name not in REFUSED]
LINEARS = 7  # of the layer that a whole model has


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
    # Most cases are not the whole model that config.json promises, and have other bits in each
    # member of a fused set.
    told = [each for each in found_by_verify if each["where"] == "config.json"]
    told += [each for each in found_by_verify if each["kind"] == "scheme"]
    assert len(told) == len(found_by_verify), found_by_verify
    assert not told or len(expected) < LINEARS


def test_compressed_tensors_converts_awq_to_the_same_bytes(cli: Ctcli, tmp_path: Path) -> None:
    case = SourceCase("awq-gemm")
    assert case.converted
    expected = load_file(case.converted)
    assert cli("convert", case.checkpoint, tmp_path / "dst").returncode == 0
    found = tensors_of(tmp_path / "dst")
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(cli: Ctcli, tmp_path: Path, name: str) -> None:
    result = cli("convert", SourceCase(name).checkpoint, tmp_path / "dst")
    assert result.returncode == 1
    assert REFUSED[name] in result.stderr
    assert not (tmp_path / "dst").exists()
