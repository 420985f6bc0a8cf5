"""Weights of checkpoints that other packages wrote are what those packages read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ctcli
from tests.helpers.sources import SourceCase, source_cases

# transformers and compressed-tensors multiply codes and scales in float32, as ctcli does.
CASES = [case for case in source_cases() if case.name != "fp8-experts"]

# What no shape tells.
OPTIONS = {"fp8-presharded": ("--presharded", "re:.*qkv_proj=4")}

# bitsandbytes' CPU decoder takes code 8 of FP4 for -0; the table beside the codes says 0.
SIGNLESS_ZERO = ("bnb-fp4",)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_weights_equal_the_other_packages(
    cli: Ctcli, tmp_path: Path, case: SourceCase
) -> None:
    given = OPTIONS.get(case.name, ())
    result = cli("dequantize", case.checkpoint, tmp_path / "dst", "--dtype", "float32", *given)
    assert result.returncode == 0, result.stderr
    made: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "dst").glob("*.safetensors"):
        made |= load_file(path)
    expected = case.expected()
    assert expected
    for name, weight in expected.items():
        if case.name in SIGNLESS_ZERO:
            weight += np.float32(0)
        found = made[name].numpy().view(np.uint32)
        np.testing.assert_array_equal(found, weight.view(np.uint32), name)
