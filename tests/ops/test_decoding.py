"""Decoded rows are what tables and float32 arithmetic make of their codes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ctcli.ops import decoding
from ctcli.ops.bits import from_floats
from ctcli.ops.packing import pack_words

ELEMENTS = {
    "E4M3": (8, decoding.e4m3_elements()),
    "E2M1": (4, decoding.e2m1_elements()),
    "E2M3": (6, decoding.float6_elements(2)),
    "int8": (8, decoding.signed_elements()),
    "int4": (4, decoding.signed_elements(4)),
    **{
        f"offset {bits}": (bits, decoding.integer_elements(bits, 1 << (bits - 1)))
        for bits in range(2, 9)
    },
    "table": (4, decoding.Elements(np.linspace(-1, 1, 16, dtype=np.float32))),
}
ROWS, COLUMNS = 6, 61  # which fill neither vectors nor bytes


def bits_of(values: NDArray[Any], target: str) -> NDArray[Any]:
    """Floats rounded to a dtype, as unsigned integers."""
    return values.view(np.uint32) if target == "F32" else from_floats(values.copy(), target)


@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("tile", [(1, 1), (1, 16), (2, 40), (6, 61)], ids=str)
@pytest.mark.parametrize("name", ELEMENTS)
def test_rows_are_what_a_table_gives(name: str, tile: tuple[int, int], target: str) -> None:
    generator = np.random.default_rng(0)
    bits, elements = ELEMENTS[name]
    codes = generator.integers(0, 2**bits, (ROWS, COLUMNS), dtype=np.uint8)
    if name == "E4M3":
        codes[codes & 0x7F == 0x7F] = 1
    stream = codes if bits == 8 else pack_words(codes, bits).view(np.uint8)
    grid = -(-ROWS // tile[0]), -(-COLUMNS // tile[1])
    scales = generator.normal(size=grid).astype(np.float32)
    for zeros in (None, generator.integers(0, 9, grid).astype(np.float32)):
        found, is_finite = decoding.decoded(
            decoding.Codes(stream, bits, elements, scales, zeros, tile), COLUMNS, target
        )
        down, across = np.arange(ROWS) // tile[0], np.arange(COLUMNS) // tile[1]
        wanted = elements.table[codes]
        if zeros is not None:
            wanted -= zeros[down][:, across]
        wanted *= scales[down][:, across]
        assert is_finite
        # Of floats, also the sign of zero.
        np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), bits_of(wanted, target))


@pytest.mark.parametrize(
    ("target", "largest"),
    [
        ("BF16", np.uint32(0x7F7F7FFF)),
        ("F16", np.uint32(0x477FEFFF)),
        ("F32", np.uint32(0x7F7FFFFF)),
    ],
)
def test_what_rounds_to_infinity_is_not_finite(target: str, largest: np.uint32) -> None:
    one = decoding.Elements(np.array([1, -1], np.float32))
    for bits, finite in ((largest, True), (largest + np.uint32(1), False)):
        scale = np.array([[bits]], np.uint32).view(np.float32)
        codes = decoding.Codes(np.array([[1]], np.uint8), 8, one, scale, None, (1, 1))
        found, is_finite = decoding.decoded(codes, 1, target)
        assert is_finite is finite
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[target]
        rounded = -torch.from_numpy(scale).to(dtype)
        assert bool(rounded.isfinite().all()) is finite
        if finite:
            assert found.view(f"u{found.itemsize}") == rounded.view(
                torch.int32 if target == "F32" else torch.int16
            ).numpy().view(f"u{found.itemsize}")


def test_nan_codes_are_not_finite_whatever_the_scale() -> None:
    for code in (0x7F, 0xFF):
        stream, zero = np.array([[0, code]], np.uint8), np.zeros((1, 1), np.float32)
        codes = decoding.Codes(stream, 8, decoding.e4m3_elements(), zero, None, (1, 2))
        assert not decoding.decoded(codes, 2, "BF16")[1]
