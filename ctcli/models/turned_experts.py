"""Llama-4's packed experts [experts, in, out] as linears [out, in], one each.

vLLM's Llama4Model loads linears `experts.N.gate_proj` beside the packed tensors that transformers
saves, and takes the former quantized. It wants one way for all layers of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctcli.lazy.nodes import Computed, Exact, Input, Node, Output, Stacked, starting_point
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.lazy.unchanged import Unchanged
from ctcli.models.experts import PackedExperts, parts_of, shape_problem
from ctcli.models.families import model_type

_TYPES = ("llama4", "llama4_text")


def are_turned(config: Mapping[str, Any]) -> bool:
    """Whether a model's packed experts are [experts, in, out], and loaders take linears too."""
    return model_type(config) in _TYPES


def turned_problem(
    packed: PackedExperts, spec: TensorSpec, config: Mapping[str, Any]
) -> str | None:
    """Why a tensor of this shape is not [experts, in, out], as config.json has the sizes."""
    experts, rows, columns = spec.shape
    if not (
        problem := shape_problem(packed, TensorSpec(spec.dtype, (experts, columns, rows)), config)
    ):
        return None
    return f"taken as [experts, in, out], transposed: {problem}"


def turned_linears(packed: PackedExperts, tensor: Stored | Stacked) -> dict[str, Computed]:
    """The experts' own weights, as columns of the packed tensor, by name.

    Args:
        packed: what it packs.
        tensor: [experts, in, out]; the first half of `gate_up_proj`'s columns is the gate.
    """
    names = parts_of(packed.role)
    found: dict[str, Computed] = {}
    for number, module in enumerate(packed.linears):
        expert, at = divmod(number, len(names))
        whole = _expert(tensor, expert)
        width = whole.spec.shape[1] // len(names)
        columns = (at * width, (at + 1) * width)
        linear = _turned(module, "turn", whole, columns)
        exact = starting_point(whole)
        assert exact, "experts are floats"
        linear.node.before = (
            linear if exact is whole else _turned(module, "turn, exact", exact, columns)
        )
        found[f"{module}.weight"] = linear
    return found


def _expert(tensor: Stored | Stacked, number: int) -> Exact:
    if isinstance(tensor, Stacked):
        return tensor.parts[number]
    spec = TensorSpec(tensor.spec.dtype, tensor.spec.shape[1:])
    return Stored(spec, tensor.file, tensor.start + number * spec.nbytes)


def _turned(module: str, step: str, whole: Exact, columns: tuple[int, int]) -> Computed:
    rows, across = whole.spec.shape
    shape = (columns[1] - columns[0], rows)
    node = Node(
        key=f"{module}/weight/{step}",
        module=module,
        shape=shape,
        inputs={"weight": Input(whole, (rows, across), "transposed", columns=columns)},
        outputs={"weight": Output(TensorSpec(whole.spec.dtype, shape))},
        kernel=Unchanged(),
    )
    return Computed(node, "weight")
