"""Weights that are read by columns, as rotations and transposed steps pull them, are the same."""

from __future__ import annotations

import numpy as np
import pytest

from ctcli.formats.sources.reading import read_quantized
from ctcli.lazy.nodes import COLUMNS, ROWS, Axis, Computed
from ctcli.storage.opening import open_checkpoint
from tests.helpers.sources import SourceCase, source_cases
from tests.helpers.spans import in_least_spans

FORMATS = ("awq", "gptq", "autoround", "bnb")
CASES = [case for form in FORMATS for case in source_cases(form)]


@pytest.mark.parametrize("axis", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_least_spans_are_parts_of_the_whole(case: SourceCase, axis: Axis) -> None:
    reading = read_quantized(open_checkpoint(str(case.checkpoint)), "F32")
    assert reading
    for name, expected in case.expected().items():
        weight = reading.coded[name].weight
        assert isinstance(weight, Computed)
        # FP4's zero of a negative sign is bitsandbytes' own.
        found = in_least_spans(weight.node, axis) + np.float32(0)
        np.testing.assert_array_equal(found, expected + np.float32(0), name)
