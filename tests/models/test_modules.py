"""Modules of a checkpoint: kinds by name and shape, and the tensors that belong to them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.models.modules import Module, modules_of
from ctcli.models.protected import Kind

LAYER = "model.layers.1"


def modules(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object] | None = None
) -> dict[str, Module[Known]]:
    tensors = {name: Known(TensorSpec("BF16", shape), b"") for name, shape in shapes.items()}
    return modules_of(tensors, config or {})


@pytest.mark.parametrize(
    ("tensor", "shape", "kind"),
    [
        ("model.embed_tokens.weight", (8, 4), "embedding"),
        ("lm_head.weight", (8, 4), "head"),
        (f"{LAYER}.mlp.gate.weight", (8, 4), "router"),
        (f"{LAYER}.input_layernorm.weight", (4,), "norm"),
        ("h.0.ln_1.weight", (4,), "norm"),
        (f"{LAYER}.linear_attn.conv1d.weight", (4, 1, 4), "convolution"),
        ("visual.blocks.11.attn.qkv.weight", (8, 4), "tower"),
        (f"{LAYER}.mlp.down_proj.R4_input.weight", (4, 4), "rotation"),
        ("mtp.0.fc.weight", (4, 8), "draft"),
        (f"{LAYER}.mlp.experts.down_proj", (2, 4, 8), "experts"),
        (f"{LAYER}.mlp.experts.17.down_proj.weight", (4, 8), "linear"),
        (f"{LAYER}.self_attn.q_proj.weight_packed", (8, 1), "linear"),
        (f"{LAYER}.mixer.A_log", (4,), "other"),
    ],
)
def test_kind(tensor: str, shape: tuple[int, ...], kind: Kind) -> None:
    (module,) = modules({tensor: shape}).values()
    assert module.kind == kind
    assert [module.tensor(part) for part in module.parts] == [tensor]


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": 61}, {"text_config": {"num_hidden_layers": 61}}]
)
def test_layers_beyond_the_model_s_own_are_drafts(config: dict[str, object]) -> None:
    shapes = {f"model.layers.{n}.mlp.up_proj.weight": (8, 4) for n in (60, 61)}
    assert [module.kind for module in modules(shapes, config).values()] == ["linear", "draft"]


def test_modules_have_all_their_tensors_and_stand_in_the_order_of_their_weights() -> None:
    shapes = {"b.bias": (8,), "a.weight": (8, 4), "b.weight": (6, 4), "c.scale": (1,), "top": (3,)}
    found = modules(shapes)
    assert [*found] == ["a", "b", "c", ""]
    assert found["b"].parts.keys() == {"bias", "weight"}
    assert found["b"].shape == (6, 4)
    assert found["b"].bias == Known(TensorSpec("BF16", (8,)), b"")
    assert found["c"].weight is None
    assert found["c"].shape == ()
    assert found[""].tensor("top") == "top"
