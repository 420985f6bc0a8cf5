"""Compiled kernels: scalar conversions, and the same bytes whatever compiles them, or nothing."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import binding
from numpy.typing import NDArray

from ctcli.ops import compiling, elements, jit, objects
from ctcli.ops.backend import body
from ctcli.ops.blocks import compare
from ctcli.ops.device.blocks import Torch
from ctcli.ops.quantized import LEAST_SQUARES, Rounding, Search
from tests.conftest import ROOT
from tests.helpers import reference
from tests.helpers.kernel_digest import ROUNDINGS
from tests.helpers.reference import E2M1, E4M3, around
from tests.helpers.restoring import half_steps, values_of

AVX512 = ["skylake-avx512"] if binding.get_host_cpu_features().get("avx512vl") else []
CPUS = ["nehalem", "haswell", *AVX512] if platform.machine() in ("x86_64", "AMD64") else []
HALVES = np.arange(1 << 16, dtype=np.uint16)


def each(function: Any, dtype: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A scalar conversion, in a loop."""
    compiling.introduce(jit.INLINED)

    @numba.njit
    def loop(x: NDArray[Any], found: NDArray[Any]) -> None:
        for i in range(x.size):
            found[i] = function(x[i])

    def call(x: NDArray[Any]) -> NDArray[Any]:
        found = np.empty(x.size, dtype)
        loop(x, found)
        return found

    return call


def finite(tag: str) -> NDArray[np.uint16]:
    return HALVES[np.isfinite(reference.from_bits(HALVES, tag))]


@pytest.mark.parametrize(
    ("tag", "read", "write"),
    [
        ("BF16", elements.from_bf16, elements.to_bf16),
        ("F16", elements.from_f16, elements.to_f16),
    ],
)
def test_halves_are_read_exactly_and_rounded_once(tag: str, read: Any, write: Any) -> None:
    bits = finite(tag)
    values = each(read, np.float32)(bits)
    np.testing.assert_array_equal(values, reference.from_bits(bits, tag))
    np.testing.assert_array_equal(each(write, np.uint16)(values), bits)
    positive = bits[bits < 0x8000]
    exact = reference.from_bits(positive, tag).astype(np.float64)
    middles = (exact[1:] + exact[:-1]) / 2
    sides = [middles * (1 + 2.0**-50), middles * (1 - 2.0**-50)]
    below, above = positive[:-1], positive[1:]
    once = each(numba.njit(lambda x: write(elements.to_odd(x))), np.uint16)
    np.testing.assert_array_equal(once(middles), np.where(below % 2, above, below))
    np.testing.assert_array_equal(once(sides[0]), above)
    np.testing.assert_array_equal(once(sides[1]), below)
    x = np.concatenate([middles, np.array([np.inf, -np.inf, 3e38])]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = reference.to_bits(x, tag)
    np.testing.assert_array_equal(each(write, np.uint16)(x), expected)


def test_small_floats_are_rounded_to_nearest_even_and_every_code_is_read() -> None:
    for magnitudes, write, read, codes, values in (
        (E4M3, elements.to_e4m3, elements.from_e4m3, reference.e4m3_codes, reference.e4m3_values),
        (E2M1, elements.to_e2m1, elements.from_e2m1, reference.e2m1_codes, reference.e2m1_values),
    ):
        x = np.concatenate([around(magnitudes), np.array([0, -0.0], np.float32)])
        np.testing.assert_array_equal(each(write, np.uint8)(x), codes(x))
        every = codes(np.concatenate([magnitudes, -magnitudes]).astype(np.float32))
        found = each(read, np.float32)(every)
        np.testing.assert_array_equal(found.view(np.uint32), values(every).view(np.uint32))
    nan = np.array([np.nan, -np.nan], np.float32)
    assert each(elements.to_e4m3, np.uint8)(nan).tolist() == [0x7F, 0x7F]


def digest(*formats: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "tests.helpers.kernel_digest", *formats],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def compiled_here() -> str:
    return digest()


def test_no_compiler_gives_the_same_bytes_and_sums(compiled_here: str) -> None:
    assert digest(NUMBA_DISABLE_JIT="1") == compiled_here


@pytest.mark.parametrize("cpu", CPUS)
def test_other_processors_give_the_same_bytes_and_sums(cpu: str, compiled_here: str) -> None:
    assert digest(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="") == compiled_here


def test_kernels_that_different_processes_compiled_are_told_apart(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    alone = digest("float8", **cache) + digest("integers", **cache)
    assert digest("float8", "integers", **cache) == alone


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("tile", [(1, None), (4, 3), (3, 1100)])
def test_packed_rows_of_many_pieces_equal_torchs(bits: int, tile: tuple[int, int | None]) -> None:
    weight = np.random.default_rng(bits).normal(size=(9, 2203)).astype(np.float32)
    rounding = Rounding("integers", "F32", False, tile, bits, packed=True, symmetric=bits % 2 == 0)
    found = body("cpu").quantize(weight, "F32", rounding, None)
    expected = Torch("cpu").quantize(weight, "F32", rounding, None)
    for ours, theirs in (
        (found.codes, expected.codes),
        (found.scales, expected.scales),
        (found.marks, expected.marks),
    ):
        np.testing.assert_array_equal(ours, theirs)
    # Torch sums squares in float32.
    assert found.sums[0, 0] == pytest.approx(expected.sums[0, 0], rel=1e-4)
    assert found.sums[0, 1] == pytest.approx(expected.sums[0, 1], rel=1e-4)


def test_quotients_of_bf16_are_rounded_as_by_division() -> None:
    significands = np.arange(128, 256, dtype=np.float32)
    weights, scales = significands[:, np.newaxis], significands * np.float32(2.0**-9)
    products = np.array(weights * (np.float32(1) / scales), np.float32)
    rounded = products.view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)
    expected = reference.from_bits(reference.to_bits(weights / scales, "BF16"), "BF16")
    np.testing.assert_array_equal(rounded.view(np.float32), expected)


@pytest.mark.parametrize(
    "rounding",
    [
        Rounding("integers", "BF16", True, (1, 128), 4),
        Rounding("integers", "BF16", True, (1, 48), 4, symmetric=False),
        Rounding("integers", "BF16", True, (1, None), 8),
        Rounding("float8", "BF16", True, (16, 128), 8),
        Rounding("nvfp4", "BF16", False, (1, 16), 4, total=9.0),
        Rounding("mx", "BF16", False, (1, 32), 4),
    ],
    ids=lambda rounding: f"{rounding.format}-{rounding.tile}",
)
def test_a_search_finds_the_part_with_the_least_error(rounding: Rounding) -> None:
    weight = np.random.default_rng(7).standard_t(4, (32, 1152)).astype(np.float32)
    weight[3, 200:500] = 0
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)

    def error_with(search: Search | None) -> tuple[NDArray[np.float64], float]:
        how = replace(rounding, search=search)
        found = body("cpu").quantize(bits, "BF16", how, None)
        values = values_of(found, how, (32, 1152))
        squares = np.square(values - reference.from_bits(bits, "BF16"), dtype=np.float64)
        down, across = found.scales.shape
        tiles = squares.reshape(down, 32 // down, across, 1152 // across)
        return tiles.sum((1, 3)), found.sums[0, 1]

    tried = np.stack([error_with(Search((part,)))[0] for part in LEAST_SQUARES.parts])
    found, energy = error_with(LEAST_SQUARES)
    # The errors that are compared are summed in float32.
    assert (found <= tried.min(0) * (1 + 1e-6)).all()
    assert energy == error_with(None)[1]


def test_nan_and_infinities_show_in_the_energy_and_nowhere_else_but_in_their_tile() -> None:
    weight = np.ones((4, 32), np.float32)
    for wrong in (np.nan, np.inf):
        weight[1, 3] = wrong
        for rounding in (
            Rounding("float8", "F32", False, (1, None), 8),
            Rounding("integers", "F32", False, (1, 16), 8, symmetric=False),
            Rounding("nvfp4", "F32", False, (1, 16), 4, total=1.0),
            Rounding("mx", "F32", False, (1, 32), 8),
        ):
            found = body("cpu").quantize(weight, "F32", rounding, None)
            assert not np.isfinite(found.sums[0, 1])
            assert (found.codes[2:] == found.codes[0]).all()
            assert (found.scales[[0, 2, 3]] == found.scales[0]).all()


@pytest.mark.parametrize("size", [1.0, 1e30])
@pytest.mark.parametrize("shape", [(200, 16), (3, 2050)])
def test_sums_of_squares_hold_for_many_pieces_and_where_float32_overflows(
    size: float, shape: tuple[int, int]
) -> None:
    """Up to 64 squares are added up in float32, each sum within 64 * 2**-24 of the exact one."""
    weight = np.random.default_rng(3).normal(0, size, shape).astype(np.float32)
    for rounding in (
        Rounding("float8", "F32", False, (1, None), 8),
        Rounding("integers", "F32", False, (4, 16), 4, symmetric=False),
        Rounding("mx", "F32", False, (1, 32), 4),
    ):
        found = body("cpu").quantize(weight, "F32", rounding, None)
        values = values_of(found, rounding, shape)
        exact = weight.astype(np.float64)
        assert found.sums[0, 1] == pytest.approx(float((exact**2).sum()), rel=64 * 2.0**-24)
        assert found.sums[0, 0] == pytest.approx(
            float(((values - exact) ** 2).sum()), rel=64 * 2.0**-24
        )


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("shape", [(7, 96), (5, 2112)])
@pytest.mark.parametrize(
    "rounding", ROUNDINGS, ids=lambda how: f"{how.format}-{how.bits}-{how.tile}-{how.dtype}"
)
def test_errors_are_those_of_each_tile(
    rounding: Rounding, shape: tuple[int, int], size: float
) -> None:
    generator = np.random.default_rng(2)
    weight = generator.normal(0, size, shape).astype(np.float32)
    if rounding.dtype == "F16":
        weight = np.clip(weight, -60000, 60000)
    how = replace(rounding, dtype="F32" if size != 1 else rounding.dtype, total=3 * size)
    found = body("cpu").quantize(weight, "F32", how, None)
    values = values_of(found, how, shape)
    block = (values + generator.normal(0, size / 8, shape)).astype(np.float32)
    zeros = None if how.symmetric else found.marks
    errors = compare(block, "F32", found.codes, found.scales, zeros, how)

    height, width = how.tile[0] or shape[0], how.tile[1] or shape[1]
    starts = np.arange(0, shape[0], height), np.arange(0, shape[1], width)

    def sums(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.add.reduceat(np.add.reduceat(x, starts[0], 0), starts[1], 1)

    difference = (values - block).astype(np.float64)
    squares = sums(difference**2)
    bounds = np.maximum(sums(half_steps(values, found, how) ** 2), 1e-30)
    # Differences, squares and sums of up to 1,024 of them are float32.
    near = 16 * 2.0**-24
    assert errors.count == values.size
    assert errors.error == pytest.approx(squares.sum(), rel=near)
    assert errors.energy == pytest.approx((block.astype(np.float64) ** 2).sum(), rel=near)
    assert errors.largest == abs(difference).max()
    excess = np.sqrt(squares / bounds)
    assert errors.excess == pytest.approx(excess.max(), rel=near)
    assert excess[errors.row // height, errors.column // width] >= excess.max() * (1 - near)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_errors_that_are_not_finite_show(wrong: float) -> None:
    how = Rounding("float8", "F32", False, (1, 32), 8)
    weight = np.random.default_rng(1).normal(size=(4, 96)).astype(np.float32)
    found = body("cpu").quantize(weight, "F32", how, None)
    weight[2, 40] = wrong
    errors = compare(weight, "F32", found.codes, found.scales, None, how)
    assert not np.isfinite(errors.error)
    assert np.isnan(errors.energy) if np.isnan(wrong) else np.isinf(errors.energy)
    assert np.isnan(errors.largest) if np.isnan(wrong) else np.isinf(errors.largest)
    if np.isinf(wrong):
        assert (errors.excess, errors.row, errors.column) == (np.inf, 2, 32)
    # The scratch that kernels share is left as it was.
    again = body("cpu").quantize(np.ones((1, 32), np.float32), "F32", how, None)
    assert again.sums.tolist() == [[0.0, 32.0]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place for object files."""
    monkeypatch.setattr(objects, "_folders", lambda: iter([tmp_path]))
    return tmp_path


def test_kernels_compile_where_nothing_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(objects, "_folders", lambda: iter([folder / "file" / "in"]))
    monkeypatch.setattr(jit, "_SLOW", 0.0)
    told = threading.Event()
    jit.on_slow_compilation(told.set)
    assert jit.kernel(_ends)(np.arange(6.0).reshape(2, 3), (2, np.float32(0.5))) == (0.0, 5.0)
    assert told.wait(5)


def test_object_files_are_used_again_and_damaged_ones_are_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, pair = np.arange(6.0).reshape(2, 3), (2, np.float32(0.5))
    assert jit.kernel(_ends)(x, pair) == (0.0, 5.0)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1]), content[9:]):
        path.write_bytes(damaged)
        assert jit.kernel(_ends)(x, pair) == (0.0, 5.0)
    monkeypatch.setattr(compiling, "compiled", None)  # calling it would fail
    assert jit.kernel(_ends)(x + 1, pair) == (1.0, 6.0)


def test_what_object_files_cannot_hold_is_not_compiled(folder: Path) -> None:
    for function in (_allocates, _returns_int16):
        with pytest.raises((numba.TypingError, TypeError), match=r"empty|int16"):
            jit.kernel(function)(3)
    with pytest.raises(TypeError, match="calls"):
        jit.kernel(_calls)(3.5)
    assert [*folder.iterdir()] == []


def test_a_kernel_takes_arrays_of_any_layout_and_all_results(folder: Path) -> None:
    x = np.arange(12, dtype=np.int16).reshape(3, 4)
    last = jit.kernel(_last)
    for array in (x, x.T, x[:, ::2], x[::-1]):
        assert last(array) == array[-1, -1]
    assert jit.kernel(_is_even)(4) is True
    assert jit.kernel(_is_even)(5) is False
    assert jit.kernel(_nothing)(5) is None
    assert len([*folder.iterdir()]) == 5


def _ends(x: NDArray[np.float64], pair: tuple[int, np.float32]) -> tuple[float, float]:
    return x[0, 0], x[-1, -1] * pair[0] * pair[1]


def _allocates(x: int) -> int:
    return np.empty(x).size


def _returns_int16(x: int) -> np.int16:
    return np.int16(x)


def _calls(x: float) -> float:
    return math.gamma(x)


def _last(x: NDArray[np.int16]) -> np.int64:
    return np.int64(x[-1, -1])


def _is_even(x: int) -> bool:
    return x % 2 == 0


def _nothing(_x: int) -> None:
    pass
