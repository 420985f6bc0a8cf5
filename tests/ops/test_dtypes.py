"""Facts about element types, against torch's."""

from __future__ import annotations

import pytest
import torch

from ctcli.ops.dtypes import CODES, DTYPES, FLOATS, SHORT_FLOATS, WEIGHT_FLOATS

NAMED = {tag: dtype for tag, dtype in DTYPES.items() if dtype.torch_name}
WITH_FACTS = [tag for tag, dtype in DTYPES.items() if dtype.infinity]


def torch_of(tag: str) -> torch.dtype:
    found = getattr(torch, str(DTYPES[tag].torch_name))
    assert isinstance(found, torch.dtype)
    return found


@pytest.mark.parametrize("tag", NAMED)
def test_sizes_and_names_are_torchs(tag: str) -> None:
    assert DTYPES[tag].nbytes == torch_of(tag).itemsize


@pytest.mark.parametrize("tag", WITH_FACTS)
def test_floats_are_torchs(tag: str) -> None:
    facts, info = DTYPES[tag], torch.finfo(torch_of(tag))
    assert (facts.epsilon, facts.largest) == (info.eps, info.max)
    one = torch.ones(1, dtype=torch_of(tag))
    assert facts.one == one.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("tag", ["BF16", "F16", "F32"])
def test_overflow_is_the_least_number_that_rounds_to_infinity(tag: str) -> None:
    limit = torch.tensor(DTYPES[tag].overflow, dtype=torch.float64)
    below = torch.nextafter(limit, torch.zeros_like(limit))
    if tag != "F32":  # torch takes float64 through float32, in which both are the same
        below = torch.nextafter(limit.float(), torch.zeros(()))
    assert limit.to(torch_of(tag)).isinf()
    assert not below.to(torch_of(tag)).isinf()


@pytest.mark.parametrize("tag", ["BF16", "F16", "F8_E5M2", "F8_E4M3"])
def test_what_is_not_finite_begins_where_it_is_said(tag: str) -> None:
    size = DTYPES[tag].nbytes
    integer = {1: torch.uint8, 2: torch.int16}[size]
    magnitudes = torch.arange(1 << (8 * size - 1), dtype=torch.int32)
    values = magnitudes.to(integer).view(torch_of(tag)).float()
    assert torch.equal(~values.isfinite(), magnitudes >= DTYPES[tag].infinity)


def test_the_lists_are_of_known_dtypes_and_nested() -> None:
    assert {*FLOATS, *CODES} <= DTYPES.keys()
    assert {*SHORT_FLOATS} < {*WEIGHT_FLOATS} < {*FLOATS} < {*WITH_FACTS}
    assert all(DTYPES[tag].bits == 16 for tag in SHORT_FLOATS)
