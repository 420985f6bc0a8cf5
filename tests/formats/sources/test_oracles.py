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
CASES = source_cases()

# Relative: ModelOpt divides by the reciprocal of the scale that it writes, twice with the factors.
BOUNDS = {"modelopt-int4-awq": 2**-21, "modelopt-int8-smooth": 2**-21}
# ModelOpt reads the negative zero of E2M1 as a positive one. bitsandbytes' CPU decoder takes code 8
# of FP4 for -0; the table beside the codes says 0.
UNSIGNED_ZEROS = ("modelopt-nvfp4", "modelopt-mixed", "modelopt-w4a8", "bnb-fp4")
# What no shape tells.
OPTIONS = {"fp8-presharded": ("--presharded", "re:.*qkv_proj=4")}


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
        found = made[name].numpy()
        assert found.shape == weight.shape
        if case.name in BOUNDS:
            np.testing.assert_allclose(found, weight, rtol=BOUNDS[case.name], err_msg=name)
            continue
        zero = np.float32(0 if case.name.startswith(UNSIGNED_ZEROS) else -0.0)
        bits, wanted = ((floats + zero).view(np.uint32) for floats in (found, weight))
        np.testing.assert_array_equal(bits, wanted, name)
