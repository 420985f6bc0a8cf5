"""Numeric formats against a plain numpy reference and compressed-tensors itself, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors import quantization as oracle
from compressed_tensors.compressors import BaseCompressor
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ctcli.lazy.evaluate import Evaluator, combined
from ctcli.lazy.nodes import (
    Computed,
    Exact,
    Input,
    Node,
    NonFiniteError,
    Output,
    Where,
    all_nodes,
    axis_of,
)
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.ops import packing
from ctcli.ops.decoding import decoded
from ctcli.ops.device import rounding, sums
from ctcli.ops.quantized import LEAST_SQUARES
from ctcli.schemes import format_of
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.family import Execution, Numerics
from ctcli.schemes.weights import Quantizer, largest_magnitude, value
from ctcli.storage.local import local_file
from tests.helpers import reference
from tests.helpers.reference import E2M1, E4M3, F32, Arguments, Quantized, Tiles, around, between

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
TAGS |= {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64"}
TAGS |= {torch.float8_e4m3fn: "F8_E4M3"}
PACKED, BYTES, NAIVE, FLOAT = (f"{x}-quantized" for x in ("pack", "int", "naive", "float"))
NVFP4 = QuantizationArgs(4, "float", "tensor_group", 16, scale_dtype="torch.float8_e4m3fn")
MXFP4 = QuantizationArgs(4, "float", "group", 32, scale_dtype="torch.uint8")
MXFP8 = replace(MXFP4, num_bits=8)
MXFP6 = replace(MXFP4, num_bits=6)
FIXED = {
    "nvfp4-pack-quantized": NVFP4,
    "mxfp4-pack-quantized": MXFP4,
    "mxfp6-pack-quantized": MXFP6,
    "mxfp8-quantized": MXFP8,
}
MODES = st.sampled_from([(d, c) for d in ("BF16", "F16", "F32") for c in ("float32", "weight")])
STRATEGIES = ("tensor", "channel", "group", "block")
CPU = Execution("cpu", allow_nonfinite=False)
TORCH = Execution("cpu:0", allow_nonfinite=False)  # what other devices do, on this one
NEVER_READ = local_file("weights", Path(__file__))


def some(kind: Any, bits: int, strategy: Any, size: Any = None, zero: bool = False) -> Any:
    group = size if strategy == "group" else None
    block = size if strategy == "block" else None
    return QuantizationArgs(bits, kind, strategy, group, block, symmetric=not zero)


def numerics(
    weights: QuantizationArgs, layout: str, dtype: str, compute: Any, observer: Any = "minmax"
) -> Numerics:
    return Numerics(Scheme("hand-made", weights, None, layout), dtype, compute, observer)


def for_reference(how: Numerics) -> Arguments:
    weights, kinds = how.scheme.weights, {None: "fp8", "torch.uint8": "mx"}
    kind: Any = "int" if weights.type == "int" else kinds.get(weights.scale_dtype, "nvfp4")
    row = None if weights.strategy == "tensor" else 1
    tile = weights.block_structure or (row, weights.group_size)
    form = (kind, weights.num_bits, weights.strategy, tile, weights.symmetric)
    return Arguments(*form, how.scheme.format == PACKED, how.compute_dtype)


def spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(TAGS[tensor.dtype], tuple(tensor.shape))


def raw(tensor: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """The bytes, so that -0 differs from 0 and NaN equals itself."""
    if isinstance(tensor, Tensor):
        return tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return np.frombuffer(tensor.tobytes(), np.uint8)


def bits_of(tensor: Tensor) -> NDArray[Any]:
    """Its elements as unsigned integers, in its shape."""
    size = tensor.element_size()
    return np.frombuffer(raw(tensor).tobytes(), f"u{size}").reshape(tensor.shape)


class InMemory:
    """Reads a weight that lies in memory."""

    def __init__(self, weight: F32, dtype: str) -> None:
        stored = torch.from_numpy(weight).to(DTYPES[dtype])
        self.array = stored.view(torch.int16).numpy().view("u2") if dtype != "F32" else weight

    def read(self, _: Stored, axis: int, start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(self.array[:, start:stop] if axis else self.array[start:stop])


@dataclass(frozen=True)
class AsItIs:
    """What is stored."""

    def __call__(self, blocks: Any, _: Where) -> tuple[Any, tuple[()]]:
        return blocks, ()


def stored_weight(shape: tuple[int, ...], dtype: str, by_columns: bool = False) -> Exact:
    spec = TensorSpec(dtype, shape)
    stored = Stored(spec, NEVER_READ, 0)
    rows, columns = shape
    if not by_columns:
        return stored
    inputs = {"weight": Input(stored, (rows, columns))}
    outputs = {"weight": Output(spec)}
    node = Node("m/x", "m", (rows, columns), inputs, outputs, AsItIs(), granule=(rows, 1))
    found = Computed(node, "weight")
    assert axis_of(found) == 1
    return found


def values_of(node: Node, reader: InMemory, together: int, others: float) -> dict[str, Any]:
    """The values that a node reads whole, from blocks of so many rows or columns."""
    values: dict[str, Any] = {}
    for each in [*all_nodes([node])][:-1]:
        assert each.combine
        length = each.shape[each.axis] if any(i.run != "whole" for i in each.inputs.values()) else 1
        starts = range(0, length, together)
        evaluator = Evaluator(reader, values)
        parts = [evaluator.value(each, at, min(at + together, length)) for at in starts]
        if each.key.endswith("amax"):
            parts.append(np.full(1, others, np.float32))
        values[each.key] = combined(parts, each.combine)
    return values


def quantize(
    weight: F32,
    how: Numerics,
    together: int,
    others: float = 0,
    axis: int = 0,
    execution: Execution = CPU,
) -> tuple[dict[str, Tensor], F32]:
    """Quantize so many rows (columns, with axis 1) at a time, and read them.

    `others` is the largest of the rest of the fused set.
    """
    source, reader = stored_weight(weight.shape, how.dtype, bool(axis)), InMemory(weight, how.dtype)
    shared: tuple[Input, ...] = ()
    if how.scheme.weights == NVFP4:
        shared = (value(largest_magnitude("module", source, execution)),)
    node = Quantizer(how, execution)("module", source, shared)
    evaluator = Evaluator(reader, values_of(node, reader, together, others))
    length = weight.shape[axis]
    starts = range(0, length, together)
    before = reader.array.copy()
    computed = []
    for start in starts:
        (found,) = evaluator.compute(node, start, min(start + together, length))
        computed.append(found.outputs)
    np.testing.assert_array_equal(raw(reader.array), raw(before), "the input changed")
    outputs, stored = {}, {}
    for name, declared in node.outputs.items():
        parts = [arrays[name] for arrays in computed][: 1 if declared.is_whole else None]
        stored[name] = np.concatenate(parts, axis if not declared.is_whole else 0)
        dtype = next(dtype for dtype, tag in TAGS.items() if tag == declared.spec.dtype)
        outputs[name] = torch.from_numpy(stored[name].copy()).view(dtype)
        assert spec_of(outputs[name]) == declared.spec, name
        if not declared.is_whole:
            lengths = [part.shape[axis] for part in parts]
            places = [node.place(name, node.axis, start) for start in starts]
            assert places == [sum(lengths[:i]) for i in range(len(parts))], name
    return outputs, restore(how, stored, weight.shape)


def restore(how: Numerics, stored: Mapping[str, Any], shape: tuple[int, ...]) -> F32:
    rows, columns = shape
    codes = format_of(how.scheme).codes(stored, (rows, columns), how.scheme, how.dtype)
    return decoded(codes, columns, "F32")[0]


def assert_equal(outputs: Mapping[str, Tensor], values: F32, expected: Quantized) -> None:
    assert outputs.keys() == expected.outputs.keys()
    for name, (tag, array) in expected.outputs.items():
        assert spec_of(outputs[name]) == TensorSpec(tag, array.shape), name
        np.testing.assert_array_equal(raw(outputs[name]), raw(array), name)
    np.testing.assert_array_equal(values, expected.values)  # as numbers: -0 is 0


# The first 32 weights of a trained layer's first row (bfloat16), what else decides the ranges of
# its first 128 columns, and what compressed-tensors 0.19 made of them on a CPU.
FIRST_WEIGHTS = (
    "7e3a803cdc3cb73c91bc82bab63c9937ae3c0e3b183c1cbb87bb0b3d6e3c75bd"
    "e13c1f3b7dbc083c8a3c243add3cb6bc423cfb3ccbbc3f3c873cf7bcdd3ba8bb"
)
EXTREMES = {32: 0.045166, 48: 0.034668, 64: 0.0771484375, 65: -0.0615234375, 96: 0.045166}
GROUP, ROW, BLOCK = ("group", (1, 128)), ("channel", (1, None)), ("block", (128, 128))
NV, MX = ("tensor_group", (1, 16)), ("group", (1, 32))
PACK, ZERO = {"packed": True}, {"packed": True, "symmetric": False}
WORKED = [
    ("int", 8, GROUP, PACK, {"weight_packed": "829AACA5", "weight_scale": "1F3A"}),
    ("int", 4, GROUP, PACK, {"weight_packed": "A8AB868A 8A89B829", "weight_scale": "293C"}),
    ("int", 3, GROUP, PACK, {"weight_packed": "6C3B9625 4937E558", "weight_scale": "B53C"}),
    # The first of the packed zero points is 7 - 8, that of the second row 0 - 8.
    ("int", 4, GROUP, ZERO, {"weight_packed": "979A7579", "weight_zero_point": "07"}),
    ("int", 4, GROUP, ZERO, {"weight_scale": "173C"}),
    ("int", 8, ROW, {}, {"weight": "021A2C25 E3FE2500", "weight_scale": "1F3A"}),
    ("int", 4, GROUP, {}, {"weight": "00020302 FE000200", "weight_scale": "293C"}),
    ("fp8", 8, ROW, {}, {"weight": "4B6B7270 EDCC701E", "weight_scale": "3539"}),
    ("fp8", 8, BLOCK, {}, {"weight": "4969706D EBCA6D1B", "weight_scale": "5B39"}),
    ("nvfp4", 4, NV, {}, {"weight_packed": "30458C04", "weight_scale": "6D656A67"}),
    ("nvfp4", 4, NV, {}, {"weight_global_scale": "00002446"}),  # 10496
    ("mx", 4, MX, {}, {"weight_packed": "20338A03", "weight_scale": "79787978"}),
    ("mx", 8, MX, {}, {"weight": "48686E6B E9C86B1A", "weight_scale": "73727372"}),
]


@pytest.mark.parametrize(("kind", "bits", "tiles", "others", "first_bytes"), WORKED)
def test_the_reference_reproduces_worked_numbers(
    kind: Any, bits: int, tiles: Any, others: Any, first_bytes: Mapping[str, str]
) -> None:
    weight = np.zeros((2, 128), np.float32)
    patterns = np.frombuffer(bytes.fromhex(FIRST_WEIGHTS), np.uint16)
    weight[0, :32] = reference.from_bits(patterns, "BF16")
    weight[0, list(EXTREMES)] = reference.rounded(list(EXTREMES.values()), "BF16")
    weight[1, 0] = 0.09375
    how = replace(Arguments(kind, bits, *tiles), compute="weight", **others)
    outputs = reference.quantize(weight, "BF16", how, gmax=0.255859375).outputs
    for name, expected in first_bytes.items():
        assert raw(outputs[name].array).tobytes().startswith(bytes.fromhex(expected)), name


def ends_and_ties(weights: QuantizationArgs) -> tuple[float, float, NDArray[np.float64]]:
    """Ends of a range that make the scale a power of two, and what is between two codes then."""
    if weights.type == "int":
        top = 2.0 ** (weights.num_bits - 1) - 1
        low, high = (-top - 0.5, top + 0.5) if weights.symmetric else (-top - 1, top)
        return low, high, np.arange(-top - 0.5, top + 1)
    magnitudes = E2M1 if weights.num_bits == 4 else E4M3
    end = 256 if weights == MXFP8 else magnitudes[-1]
    return end, -end, between(magnitudes)


@st.composite
def weights_for(draw: st.DrawFn, how: Numerics, shape: tuple[int, int]) -> F32:
    """Finite values: patterns of bits, the same within four binades, normals, ties; extremes."""
    dtype, n = how.dtype, shape[0] * shape[1] * DTYPES[how.dtype].itemsize
    mantissa, exponents = reference.MANTISSA[dtype], 2 * reference.BIAS[dtype] + 1
    kind = draw(st.sampled_from(("patterns", "binades", "normals", "ties", "binades", "ties")))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind in ("patterns", "binades"):
        data = rng.bytes(n) if kind == "binades" else draw(st.binary(min_size=n, max_size=n))
        pattern: Any = np.uint32 if dtype == "F32" else np.uint16
        bits = np.frombuffer(data, pattern).astype(int)
        if kind == "binades":
            first = draw(st.sampled_from((0, exponents // 2, exponents - 4)))
            exponent = first + (bits >> mantissa & 3)
            bits = bits & ~(exponents << mantissa) | exponent << mantissa
        weight = reference.from_bits(bits.astype(pattern), dtype).reshape(shape)
    elif kind == "normals":
        weight = rng.normal(0, 10.0 ** draw(st.integers(-8, 3)), shape).astype(np.float32)
    else:
        low, high, ties = ends_and_ties(how.scheme.weights)
        tiles, (down, across) = Tiles(shape, for_reference(how).tile), for_reference(how).tile
        weight = rng.choice(np.concatenate([ties, -ties]), shape).astype(np.float32)
        weight[:: down or shape[0], :: across or shape[1]] = low
        weight[:: down or shape[0], 1 :: across or shape[1]] = high
        # E4M3 scales under a global scale of 1024, which is 2688 / 2.625.
        scales = E4M3[8:] / 1024 if how.scheme.weights == NVFP4 else 2.0 ** np.arange(-9, 7)
        weight *= tiles.spread(rng.choice(scales, tiles.count))
    smallest = reference.SMALLEST_NORMAL[dtype]
    extremes = (0.0, -0.0, smallest, -smallest / 2, smallest / 2**mantissa, 1.0, -3e4, 6e4, 3e38)
    places = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    runs = st.tuples(places, st.sampled_from((1, 1, 16, 128)), st.sampled_from(extremes))
    for (row, column), length, extreme in draw(st.lists(runs, max_size=4)):
        weight[row, column : column + length] = extreme
    with np.errstate(over="ignore"):
        weight = reference.rounded(weight, dtype)
    return np.where(np.isfinite(weight), weight, np.float32(0))


KINDS = [
    *[("int", s, layout, z) for s in STRATEGIES for layout in (PACKED, BYTES) for z in (0, 1)],
    *[("float", strategy, FLOAT, 0) for strategy in STRATEGIES],
    *[("float", "", layout, 0) for layout in FIXED],
]


@pytest.mark.parametrize(("kind", "strategy", "layout", "zero"), KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_bytes_are_those_of_the_reference_in_any_blocks(
    kind: str, strategy: str, layout: str, zero: int, data: st.DataObject
) -> None:
    sizes: Any = {"group": (8, 16, 32, 128), "block": ((8, 16), (16, 16), (5, 3), (1, 7), (32, 1))}
    size = data.draw(st.sampled_from(sizes.get(strategy, (None,))))
    bits = data.draw(st.integers(2, 8)) if kind == "int" else 8
    weights = FIXED.get(layout) or some(kind, bits, strategy, size, bool(zero))
    how = numerics(weights, layout, *data.draw(MODES))
    group = weights.group_size
    columns = group * data.draw(st.integers(1, 2)) if group else data.draw(st.integers(1, 40))
    granule, across = format_of(how.scheme).granule(how.scheme)
    rows = data.draw(st.integers(1, 20 + granule))
    weight = data.draw(weights_for(how, (rows, columns)))
    others = data.draw(st.sampled_from((0, 2.625, 2.625, 1024)))
    gmax = max(others, float(np.abs(weight).max()))
    expected = reference.quantize(weight, how.dtype, for_reference(how), gmax)
    for together in (-(-rows // granule) * granule, granule * data.draw(st.integers(1, 3))):
        assert_equal(*quantize(weight, how, together, others), expected)
    assert_equal(*quantize(weight, how, together, others, execution=TORCH), expected)
    if rows > 1 and columns > 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ctcli.lazy.nodes.LEAST_COLUMNS", 1)
            assert_equal(*quantize(weight, how, across, others, axis=1), expected)


HAND_MADE = [
    (some("int", 3, "channel", zero=True), PACKED),
    (some("int", 5, "channel", zero=True), PACKED),
    (some("int", 2, "group", 16, zero=True), PACKED),
    (some("int", 7, "group", 8), PACKED),
    (some("int", 4, "tensor"), PACKED),
    (some("int", 4, "tensor", zero=True), PACKED),
    (some("int", 6, "block", (8, 16), zero=True), PACKED),
    (some("int", 8, "block", (16, 16), zero=True), BYTES),
    (some("int", 4, "channel", zero=True), NAIVE),
    (some("float", 8, "tensor"), NAIVE),
    (some("float", 8, "channel"), FLOAT),
    (some("float", 8, "group", 64), NAIVE),
    (some("float", 8, "block", (16, 32)), FLOAT),
    # Release 0.19 has no MXFP6; the bytes of 0.20.1 are those of the test below.
    *[(weights, layout) for layout, weights in FIXED.items() if weights is not MXFP6],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("weights", "layout"), HAND_MADE)
def test_compressed_tensors_writes_the_same_bytes_and_reads_them_back(
    weights: QuantizationArgs, layout: str, dtype: str
) -> None:
    how = numerics(weights, layout, dtype, "weight")
    rng = np.random.default_rng(weights.num_bits)
    weight = rng.normal(0, 0.02, (45, 128 if weights.group_size else 120)).astype(np.float32)
    weight[7, 30:60] *= 40
    # In float16, compressed-tensors' scale of an empty MX group underflows and becomes one.
    weight[3] = 0.001 if dtype == "F16" and weights.scale_dtype == "torch.uint8" else 0
    weight = reference.rounded(weight, dtype)
    args = oracle.QuantizationArgs(**weights.to_config())
    scheme = oracle.QuantizationScheme(targets=["Linear"], weights=args, format=layout)
    state = {"weight": torch.from_numpy(weight).to(DTYPES[dtype])}
    if weights == NVFP4:
        ends = (state["weight"].amin(), state["weight"].amax())
        state["weight_global_scale"] = oracle.utils.generate_gparam(*ends)
    tiles = Tiles(weight.shape, for_reference(how).tile)
    ranges = (torch.from_numpy(found).to(DTYPES[dtype]) for found in tiles.bounds(weight))
    low, high = (x.view(1) if weights.strategy == "tensor" else x for x in ranges)
    total = state.get("weight_global_scale")
    state["weight_scale"], zero = oracle.utils.calculate_qparams(low, high, args, total)
    if not weights.symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(layout)
    compressed = compressor.compress(state, scheme)
    outputs, values = quantize(weight, how, 64)
    assert outputs.keys() == compressed.keys()
    for name, tensor in compressed.items():
        assert spec_of(outputs[name]) == spec_of(tensor), name
        np.testing.assert_array_equal(raw(outputs[name]), raw(tensor), name)

    # It multiplies in the dtype of the scales, which is the weight's; and it reads scales of MX,
    # or writes the product for FP4, as bfloat16, whatever the weight was. Codes and differences of
    # codes are exact in all of these, float32 products too where a product is rounded again.
    result = compressor.decompress(dict(outputs), scheme)["weight"]
    assert result.dtype == DTYPES[dtype if weights.scale_dtype is None else "BF16"]
    rounded = reference.rounded(values, TAGS[result.dtype])
    np.testing.assert_array_equal(result.float().numpy(), rounded)

    stored = {name: bits_of(tensor) for name, tensor in outputs.items()}
    np.testing.assert_array_equal(restore(how, stored, weight.shape), values)
    errors = format_of(how.scheme).compare(stored, weight, "F32", how.scheme, how.dtype)
    # The quotient was rounded to the weight's dtype, in whose steps the codes are counted.
    slack = {"F32": 1.001, "F16": 1.01, "BF16": 1.5}[how.dtype]
    assert errors.excess**2 <= slack, "rounding leaves at most half a step"


def assert_least_error(weight: F32, how: Numerics) -> None:
    plain, gmax = for_reference(how), float(np.abs(weight).max())

    def errors(values: F32) -> NDArray[np.float64]:
        squares = (values.astype(np.float64) - weight) ** 2
        return Tiles(weight.shape, plain.tile).sums(squares)

    tried = [
        reference.quantize(weight, how.dtype, plain, gmax, shrink) for shrink in LEAST_SQUARES.parts
    ]
    possible = np.stack([errors(quantized.values) for quantized in tried])
    outputs, values = quantize(weight, how, 32)
    # ctcli sums squares of differences in float32: three roundings each, and one for each sum.
    slack = 1 + (weight.size + 3) * 2.0**-24
    assert (errors(values) <= np.minimum(possible.min(0), possible[0]) * slack).all()
    # The widest range with that error and scale; of ties in float64, rounding picks one.
    scales = np.stack([q.outputs["weight_scale"][1].reshape(possible[0].shape) for q in tried])
    found = raw(outputs["weight_scale"]).view(scales.dtype).reshape(possible[0].shape)
    chosen = np.array(LEAST_SQUARES.parts)[
        ((possible == errors(values)) & (scales == found)).argmax(0)
    ]
    assert_equal(outputs, values, reference.quantize(weight, how.dtype, plain, gmax, chosen))


@pytest.mark.parametrize(("weights", "layout"), HAND_MADE)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_mse_finds_the_range_of_least_error(
    weights: QuantizationArgs, layout: str, data: st.DataObject
) -> None:
    dtype, compute = data.draw(MODES)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weight = rng.standard_t(3, (35, 64 if weights.group_size else 37)) / 64
    weight[2, :32] = 0
    weight[5] = np.abs(weight[5])
    how = numerics(weights, layout, dtype, compute, "mse")
    assert_least_error(reference.rounded(weight, dtype), how)


def test_of_two_ranges_with_the_same_error_mse_takes_the_wider() -> None:
    # 3.5 is as far from 4, with a scale of 1, as from 3, the largest value with a scale of 1/2.
    weight = np.zeros((1, 32), np.float32)
    weight[0, 0] = 3.5
    how = numerics(MXFP4, "mxfp4-pack-quantized", "BF16", "float32", "mse")
    assert_least_error(weight, how)
    assert quantize(weight, how, 1)[0]["weight_scale"].item() == 127


@pytest.mark.parametrize(
    ("weights", "layout"),
    [(some("int", 4, "channel"), BYTES), (some("float", 8, "channel"), FLOAT)],
)
@pytest.mark.parametrize("size", [1, 1e30])  # squares of the larger are too large for float32
def test_sums_of_squares_come_with_the_outputs_and_nonfinite_weights_are_refused(
    weights: QuantizationArgs, layout: str, size: float
) -> None:
    how = numerics(weights, layout, "F32", "float32")
    stored = stored_weight((6, 32), "F32")
    node = Quantizer(how, CPU)("module", stored)
    weight = np.random.default_rng(1).normal(size=(6, 32)).astype(np.float32) * np.float32(size)
    reader = InMemory(weight, "F32")
    (found,) = Evaluator(reader, {}).compute(node, 0, 6)
    values = restore(how, found.outputs, (6, 32))
    expected = [(x.astype(np.float64) ** 2).sum() for x in (values - weight, weight)]
    # In float32: a difference, its square, and the sum of all 192 of them.
    np.testing.assert_allclose(found.measures[0], expected, rtol=194 * 2.0**-24)
    allowing = Quantizer(how, replace(CPU, allow_nonfinite=True))("module", stored)
    for wrong in (np.nan, -np.inf):
        weight[4, 0] = wrong
        with pytest.raises(NonFiniteError):
            [*Evaluator(reader, {}).compute(node, 0, 6)]
        assert [*Evaluator(reader, {}).compute(allowing, 0, 6)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_hold_a_dense_stream_of_bits(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for width in range(1, 70):
        codes = rng.integers(0, 2**bits, (3, width)).astype(np.uint8)
        packed = packing.pack_words(codes, bits)
        np.testing.assert_array_equal(packed.view("i4"), reference.pack_words(codes, bits))
        column = packing.pack_words(codes[:1].T.copy().T, bits)
        np.testing.assert_array_equal(column, packed[:1])
        np.testing.assert_array_equal(packing.unpack_words(packed, bits, width), codes)


def test_e4m3_rounds_to_nearest_even_and_reads_every_code() -> None:
    x = around(E4M3)
    codes = rounding.to_e4m3(torch.tensor(x)).view(torch.uint8).numpy()
    np.testing.assert_array_equal(codes, reference.e4m3_codes(x))
    every = np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0xFF])  # these are NaN
    values = rounding.from_e4m3(torch.from_numpy(every).view(torch.float8_e4m3fn))
    np.testing.assert_array_equal(raw(values), raw(reference.e4m3_values(every)))


def test_e2m1_rounds_to_nearest_even_and_reads_every_code() -> None:
    x = around(E2M1)
    codes, values = rounding.to_e2m1(torch.tensor(x))
    np.testing.assert_array_equal(codes, reference.e2m1_codes(x))
    np.testing.assert_array_equal(values, reference.e2m1_values(codes.numpy()))
    tiny = torch.tensor([-0.0, 0.0, -1e-30, 1e-30])
    assert rounding.to_e2m1(tiny)[0].tolist() == [0, 0, 8, 0]
    every = np.arange(16, dtype=np.uint8)
    read = rounding.from_e2m1(torch.from_numpy(every))
    np.testing.assert_array_equal(raw(read), raw(reference.e2m1_values(every)))


@pytest.mark.parametrize("group", [8, 32])
def test_the_largest_magnitude_is_never_negative_zero_and_keeps_nan(group: int) -> None:
    weight = torch.tensor([[0.0], [-0.0], [-3.0], [torch.nan]]).repeat(1, group)
    weight[2:, 1:] = 2
    found = sums.largest_along(weight, 1).view(4).numpy()
    np.testing.assert_array_equal(found, np.array([0, 0, 3, np.nan]))
    assert not np.signbit(found[:3]).any()
