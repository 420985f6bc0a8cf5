"""Small nodes that are alike, computed as one: the bytes, measures and errors of each alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ctcli.engine import perform
from ctcli.errors import CtcliError
from ctcli.lazy import stacks as module
from ctcli.lazy.cut import BLOCK_ELEMENTS
from ctcli.lazy.nodes import Node, Where
from ctcli.lazy.stacks import compute_stack, stacks
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.schemes import format_of
from ctcli.schemes.family import Execution, Numerics, Observer
from ctcli.schemes.presets import PRESETS, preset
from ctcli.schemes.weights import Quantizer
from ctcli.storage.local import local_file
from tests.helpers.checkpoints import array, file_hashes, write_checkpoint
from tests.helpers.quantizing import run_quantize

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block

FILE = local_file("weights", Path(__file__))
SHAPE = (128, 256)
STACKABLE = [
    name
    for name in PRESETS
    if format_of(preset(name)).whole(preset(name), by_columns=False) is None
]


class Memory:
    """A reader of tensors that are in memory."""

    def __init__(self, weights: Sequence[Block]) -> None:
        tag = {2: "BF16", 4: "F32"}[weights[0].itemsize]
        specs = [TensorSpec(tag, weight.shape) for weight in weights]
        self.tensors = [Stored(spec, FILE, i) for i, spec in enumerate(specs)]
        self._blocks = dict(zip(self.tensors, weights, strict=True))

    def read_stack(self, tensors: Sequence[Stored]) -> Block:
        return np.concatenate([self._blocks[tensor] for tensor in tensors])


def some_weights(count: int, seed: int = 0) -> list[Block]:
    """Weights of float32: one of zeros, one whose squares are too large for float32."""
    weights = [array(*SHAPE, seed=seed + i) for i in range(count)]
    weights[1][:] = 0
    weights[2] *= np.float32(1e25)
    return weights


def nodes_of(
    reader: Memory, name: str, observer: Observer = "minmax", execution: Execution | None = None
) -> list[Node]:
    tag = reader.tensors[0].spec.dtype
    how = Quantizer(
        Numerics(preset(name), tag, "float32", observer), execution or Execution("cpu", True)
    )
    return [how(f"m{i}", tensor) for i, tensor in enumerate(reader.tensors)]


def assert_alike(reader: Memory, weights: Sequence[Block], nodes: list[Node]) -> None:
    (stack,) = stacks(nodes)
    assert stack == nodes
    for node, weight, (outputs, measured) in zip(
        nodes, weights, compute_stack(reader, stack), strict=True
    ):
        alone, once = node.kernel({"weight": weight}, Where(0, 0, SHAPE[0], SHAPE))
        assert outputs.keys() == alone.keys() == node.outputs.keys()
        for name, block in alone.items():
            assert outputs[name].dtype == block.dtype
            np.testing.assert_array_equal(outputs[name], block, err_msg=name, strict=True)
        np.testing.assert_array_equal(measured, once)


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_gives_what_its_nodes_give_alone(name: str) -> None:
    weights = some_weights(5)
    reader = Memory(weights)
    assert_alike(reader, weights, nodes_of(reader, name))


@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "W4A16_ASYM", "FP8_BLOCK", "MXFP4A16"])
def test_so_it_does_from_bf16_with_nan_and_with_torch(name: str) -> None:
    weights = [weight.view(np.uint32) >> 16 for weight in some_weights(4, seed=9)]
    bits = [weight.astype(np.uint16) for weight in weights]
    bits[3][5, 7] = 0x7FC0  # NaN
    reader = Memory(bits)
    for device in ("cpu", "cpu:0"):  # with torch, as on other devices
        assert_alike(reader, bits, nodes_of(reader, name, execution=Execution(device, True)))


def test_a_search_finds_the_same_ranges_in_a_stack() -> None:
    weights = some_weights(4)
    reader = Memory(weights)
    assert_alike(reader, weights, nodes_of(reader, "W4A16", "mse"))


def test_a_stack_has_no_more_elements_than_a_block_and_nodes_of_one_kind() -> None:
    many = BLOCK_ELEMENTS // (SHAPE[0] * SHAPE[1])
    small = Memory([array(*SHAPE)] * (many + 3))
    other = Memory([array(64, 256)] * 2)
    nodes = [*nodes_of(small, "W4A16"), *nodes_of(other, "W4A16")]
    mixed = [*nodes[-2:], *nodes[:-2]]
    assert [len(stack) for stack in stacks(mixed)] == [2, many, 3]
    assert sorted(node.key for stack in stacks(mixed) for node in stack) == sorted(
        node.key for node in nodes
    )


def test_what_needs_a_value_or_ends_within_a_tile_is_computed_alone() -> None:
    by_tensor = nodes_of(Memory([array(*SHAPE)] * 3), "FP8")
    ragged = nodes_of(Memory([array(96, 256)] * 3), "FP8_BLOCK")  # tiles of 128 rows
    large = nodes_of(Memory([array(BLOCK_ELEMENTS // 256, 256)] * 2), "W4A16")
    empty = nodes_of(Memory([array(0, 256)] * 2), "W4A16")
    for nodes in (by_tensor, ragged, large, empty):
        assert stacks(nodes) == [[node] for node in nodes]


def model(folder: Path, broken: int | None = None) -> Path:
    """A checkpoint of many small linears, of which one may hold NaN."""
    tensors = {"model.embed_tokens.weight": array(64, 128)}
    for i in range(40):
        for j, leaf in enumerate(("down_proj", "gate_proj", "up_proj")):
            weight = array(128, 128, seed=3 * i + j)
            if i == broken and leaf == "gate_proj":
                weight[3, 4] = np.nan
            tensors[f"model.layers.0.mlp.experts.{i}.{leaf}.weight"] = weight
    return write_checkpoint(folder, {"model.safetensors": tensors})


@pytest.mark.parametrize("workers", [1, 3])
def test_a_checkpoint_of_small_linears_is_the_same_without_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    source, sizes = model(tmp_path / "source"), list[int]()

    def noted(nodes: list[Node]) -> list[list[Node]]:
        found = stacks(nodes)
        sizes.extend(len(stack) for stack in found)
        return found

    monkeypatch.setattr(perform, "stacks", noted)
    run_quantize(source, tmp_path / "stacked", "W4A16", workers=workers)
    assert max(sizes) == BLOCK_ELEMENTS // 128**2
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 0)
    del sizes[:]
    run_quantize(source, tmp_path / "alone", "W4A16")
    assert max(sizes) == 1
    assert file_hashes(tmp_path / "stacked") == file_hashes(tmp_path / "alone")


def test_nan_in_one_of_a_stack_names_its_module(tmp_path: Path) -> None:
    source = model(tmp_path / "source", broken=17)
    with pytest.raises(CtcliError, match=r"experts\.17\.gate_proj") as raised:
        run_quantize(source, tmp_path / "made", "W4A16")
    assert len(raised.value.problems) == 1
    assert not (tmp_path / "made").exists()
