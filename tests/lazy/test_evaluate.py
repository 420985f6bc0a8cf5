"""Nodes on nodes: what the one evaluator pulls, along rows, along columns, transposed and whole."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ctcli.lazy.cut import _cut, cut
from ctcli.lazy.evaluate import Evaluator
from ctcli.lazy.nodes import (
    COLUMNS,
    Axis,
    Computed,
    Input,
    Node,
    Output,
    Where,
    all_nodes,
    preferred_axis,
    step_key,
)
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.lazy.values import Values
from ctcli.storage.local import LocalFile

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks


@dataclass(frozen=True)
class Add:
    """The sum of all inputs that run along, scaled by those that are whole."""

    output: str = "sum"

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[Any]]:
        along = [block for name, block in blocks.items() if name != "factor"]
        total = np.sum(along, axis=0) * blocks.get("factor", np.float32(1))
        return {self.output: np.asarray(total)}, [(where.start, where.stop)]


@dataclass(frozen=True)
class Tiled:
    """Each tile of the weight times its scale."""

    rows: int
    columns: int

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[Any]]:
        weight = blocks["weight"]
        scale = blocks["scale"].repeat(self.rows, 0).repeat(self.columns, 1)
        return {"sum": weight * scale[: weight.shape[0], : weight.shape[1]]}, ()


@dataclass(frozen=True)
class RowNumbers:
    """A matrix that nothing is read for."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[Any]]:
        assert not blocks
        rows = np.arange(where.start, where.stop, dtype=np.float32)
        return {"sum": np.repeat(rows[:, None], where.shape[1], 1)}, ()


@dataclass(frozen=True)
class Total:
    """The sum of a block."""

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[Any]]:
        return {"value": np.array([blocks["x"].sum(dtype=np.float64)])}, ()


class Memory:
    """Matrices by the place where they are said to lie; says what was read of them."""

    def __init__(self) -> None:
        self.arrays: dict[int, Block] = {}
        self.reads: list[tuple[int, Axis, int, int]] = []

    def store(self, array: Block) -> Stored:
        place = len(self.arrays)
        self.arrays[place] = array
        file = LocalFile("memory", None, 0, "")  # type: ignore[arg-type]  # it is not opened
        return Stored(TensorSpec("F32", array.shape), file, place)

    def read(self, tensor: Stored, axis: Axis, start: int, stop: int) -> Block:
        self.reads.append((tensor.start, axis, start, stop))
        array = self.arrays[tensor.start].reshape(tensor.spec.shape)
        return array[:, start:stop] if axis == COLUMNS else array[start:stop]


def node(
    name: str, shape: tuple[int, int], inputs: dict[str, Input], kernel: Any = None, **more: Any
) -> Node:
    outputs = {"sum": Output(TensorSpec("F32", shape))}
    return Node(f"m/{name}", "m", shape, inputs, outputs, kernel or Add(), **more)


def evaluate(found: Node, memory: Memory, values: dict[str, Block] | None = None) -> Block:
    """All of a node, job by job."""
    evaluator = Evaluator(memory, values or {})
    how = cut(found)
    parts = [
        outputs["sum"]
        for start, stop in how.spans()
        for _, outputs, _ in evaluator.compute(found, start, stop)
    ]
    return np.concatenate(parts, how.axis)


@pytest.fixture(params=[0, 1])
def axis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Axis:
    """Along what a node is evaluated; in blocks of a few rows (columns) each."""
    monkeypatch.setattr("ctcli.lazy.cut.BLOCK_ELEMENTS", 64)
    monkeypatch.setattr("ctcli.lazy.cut._JOB_ELEMENTS", 512)
    monkeypatch.setattr("ctcli.lazy.cut.COLUMNS_AT_ONCE", 8)
    return 0 if request.param == 0 else 1


def matrix(rows: int, columns: int, seed: int = 0) -> Block:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def test_a_transposed_input_runs_the_other_way(axis: Axis) -> None:
    memory, w, other = Memory(), matrix(24, 40), matrix(40, 24, 1)
    inputs = {
        "w": Input(memory.store(w), (24, 40)),
        "other": Input(memory.store(other), (40, 24), "transposed"),
    }
    found = evaluate(node("n", (24, 40), inputs, axis=axis), memory)
    assert (found == w + other.T).all()
    assert {(place, run) for place, run, *_ in memory.reads} == {(0, axis), (1, 1 - axis)}


@pytest.mark.parametrize(("window_bytes", "window"), [(10**9, 52), (4 * 22 * 23, 24)])
def test_what_runs_across_rows_is_read_in_windows_of_many(
    monkeypatch: pytest.MonkeyPatch, window_bytes: int, window: int
) -> None:
    monkeypatch.setattr("ctcli.lazy.cut.BLOCK_ELEMENTS", 88)
    monkeypatch.setattr("ctcli.lazy.cut._WINDOW_BYTES", window_bytes)
    memory, w = Memory(), matrix(22, 52)
    below = node("b", (52, 22), {"w": Input(memory.store(w), (22, 52), "transposed")})
    found = node("t", (52, 22), {"x": Input(Computed(below, "sum"), (52, 22))})
    _cut.cache_clear()
    how = cut(found)
    assert how.band == 4
    yielded = [*Evaluator(memory, {}).compute(found, 0, 52)]
    assert [part.start for part in yielded] == [*range(0, 52, 4)]
    assert (np.concatenate([part.outputs["sum"] for part in yielded]) == w.T).all()
    read = [(start, stop) for _, _, start, stop in memory.reads]
    assert read == [(at, min(at + window, 52)) for at in range(0, 52, window)]
    assert how.memory >= 2 * 4 * 22 * window
    _cut.cache_clear()


@pytest.mark.parametrize("shape", [(24, 40), (21, 37), (5, 3)])
def test_scales_run_along_by_granules_ragged_or_not(axis: Axis, shape: tuple[int, int]) -> None:
    memory, w = Memory(), matrix(*shape)
    tiles = -(-shape[0] // 8), -(-shape[1] // 4)
    scale = matrix(*tiles, 1)
    inputs = {
        "weight": Input(memory.store(w), shape),
        "scale": Input(memory.store(scale), tiles, each=(1, 1)),
    }
    found = evaluate(node("n", shape, inputs, Tiled(8, 4), granule=(8, 4), axis=axis), memory)
    expected = w * scale.repeat(8, 0).repeat(4, 1)[: shape[0], : shape[1]]
    assert (found == expected).all()


def test_granules_of_nodes_below_are_kept_together(axis: Axis) -> None:
    memory, w = Memory(), matrix(48, 60)
    below = node("b", (48, 60), {"w": Input(memory.store(w), (48, 60))}, granule=(6, 5))
    # One granule of 4 rows reads 3 rows of what is below: 8 rows make 6.
    above = node(
        "a", (64, 60), {"w": Input(Computed(below, "sum"), (48, 60), each=(3, 60))}, granule=(4, 60)
    )
    assert above.together == (8, 60)
    top = node(
        "t", (48, 60), {"w": Input(Computed(below, "sum"), (48, 60))}, granule=(4, 3), axis=axis
    )
    assert top.together == (12, 15)
    assert (evaluate(top, memory) == w).all()
    starts = {start for _, run, start, _ in memory.reads if run == axis}
    assert all(start % top.together[axis] == 0 for start in starts)


def test_a_generated_matrix_reads_nothing() -> None:
    memory, w = Memory(), matrix(30, 20)
    rows = node("n", (30, 20), {}, RowNumbers())
    numbers = np.arange(30, dtype=np.float32)[:, None]
    assert (evaluate(rows, memory) == numbers).all()
    assert not memory.reads
    inputs = {"w": Input(memory.store(w), (30, 20)), "rows": Input(Computed(rows, "sum"), (30, 20))}
    assert (evaluate(node("t", (30, 20), inputs), memory) == w + numbers).all()


def test_a_vector_can_be_taken_for_a_column() -> None:
    memory, bias = Memory(), matrix(1, 12)
    below = node("b", (1, 12), {"x": Input(memory.store(bias), (1, 12))})
    found = node("t", (12, 1), {"x": Input(Computed(below, "sum"), (12, 1))})
    assert (evaluate(found, memory) == bias.T).all()
    known = Known(TensorSpec("F32", (12,)), bias.tobytes())
    found = node("k", (12, 1), {"x": Input(known, (12, 1))})
    assert (evaluate(found, memory) == bias.T).all()


def test_values_are_computed_in_parts_and_go_after_their_last_reader(axis: Axis) -> None:
    memory, w = Memory(), matrix(64, 48)
    inputs = {"x": Input(memory.store(w), (64, 48))}
    outputs = {"value": Output(TensorSpec("F64", (1,)), is_whole=True)}
    value = Node("m/v", "m", (64, 48), inputs, outputs, Total(), axis=axis, combine="sum")
    inputs = {
        "w": Input(memory.store(w), (64, 48)),
        "factor": Input(Computed(value, "value"), (1, 1), "whole"),
    }
    reader = node("n", (64, 48), inputs)
    assert [*all_nodes([reader])] == [value, reader]
    values, evaluator = Values(), Evaluator(memory, {})
    jobs, spans = cut(reader).jobs, [*cut(value).spans()]
    assert len(spans) > 2
    values.expect(reader, jobs)
    kept = []
    for start, stop in reversed(spans):
        assert not values.has([value])
        part = evaluator.value(value, start, stop)
        kept.append(weakref.ref(part))
        values.add(value, start, part, len(spans))
        del part
    assert values.has([value])
    assert [reference() for reference in kept] == [None] * len(spans)
    total = values.known[value.key]
    assert float(total[0]) == pytest.approx(w.sum(dtype=np.float64))
    assert values.nbytes == 8
    found = evaluate(reader, memory, values.known)
    assert np.allclose(found, w * total)
    for left in reversed(range(jobs)):
        assert values.has([value])
        values.used(reader)
        assert bool(left) == values.has([value])
    assert not values.nbytes


def test_the_largest_is_nan_if_a_part_is() -> None:
    memory, w = Memory(), matrix(64, 48)
    inputs = {"x": Input(memory.store(w), (64, 48))}
    outputs = {"value": Output(TensorSpec("F64", (1,)), is_whole=True)}
    value = Node("m/v", "m", (64, 48), inputs, outputs, Total(), combine="max")
    values = Values()
    for start, part in ((0, 1.0), (1, np.nan), (2, 2.0)):
        values.add(value, start, np.array([part]), 3)
    assert np.isnan(values.known["m/v"]).all()


def test_large_matrices_whose_rows_belong_together_are_taken_by_columns() -> None:
    assert preferred_axis((8192, 28672), (8192, 1)) == 1
    assert preferred_axis((8192, 28672), (128, 128)) == 0
    assert preferred_axis((8192, 8), (8192, 1)) == 0
    assert preferred_axis((8192, 28672), (1, 1)) == 0


def test_the_columns_of_a_large_matrix_leave_room_for_other_jobs() -> None:
    """A rotation that mixes the 8192 rows of a 70B model's down_proj, read by columns."""
    shape = (8192, 28672)
    file = LocalFile("memory", None, 0, "")  # type: ignore[arg-type]  # it is not opened
    stored = Stored(TensorSpec("BF16", shape), file, 0)
    found = node("n", shape, {"w": Input(stored, shape)}, granule=(8192, 1), axis=1)
    run = 8192 * 2048  # read as bfloat16; results in float32, in bands and joined
    assert run * (2 + 4 + 4) < cut(found).memory < 2e9 / 4


def test_keys_tell_steps_and_tensors_apart() -> None:
    memory = Memory()
    stored = memory.store(matrix(2, 2))
    first = Node(step_key("m", "weight", stored, "fuse"), "m", (2, 2), {}, {}, Add())
    assert first.key == "m/weight/fuse"
    assert step_key("m", "weight", Computed(first, "x"), "fuse") == "m/weight/fuse/fuse"
    assert step_key("head", "weight", Computed(first, "x"), "round") == "head/weight/fuse/round"
    assert step_key("m", "bias", Computed(first, "x"), "round") == "m/bias/weight/fuse/round"


@pytest.mark.parametrize("run", ["along", "transposed"])
def test_an_input_may_be_some_columns_of_what_it_reads(axis: Axis, run: Any) -> None:
    memory, given = Memory(), matrix(30, 40)
    part = given[:, 6:30]
    wanted = part if run == "along" else part.T
    for each in (None, (1, 1)):
        item = Input(memory.store(given), (30, 40), run, each, columns=(6, 30))
        found = node("some", (wanted.shape[0], wanted.shape[1]), {"x": item}, axis=axis)
        np.testing.assert_array_equal(evaluate(found, memory), wanted)
