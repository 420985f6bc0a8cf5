"""Architecture declarations: proved on tiny models by arithmetic, and refused where they end."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ctcli.errors import CtcliError
from ctcli.models.architecture import Operation
from ctcli.models.fused import fused_sets
from ctcli.models.mapped import resolve_mapping
from ctcli.models.mapping import parse_mapping
from ctcli.models.protected import kind_of
from ctcli.models.resolve import resolve
from tests.helpers.architectures import OPERATIONS
from tests.helpers.surgery import fuse_norms, orthogonal, untie
from tests.helpers.tiny_models import (
    EXACT,
    LLAMA_MAPPING,
    MODELS,
    Models,
    Tiny,
    difference,
    load,
    logits,
    make,
    read,
    tokens,
    write,
)

WRONG = 1e-2  # what a part that is forgotten moves the logits by, at least


def operated(model: Tiny, operations: Sequence[Operation], folder: Path) -> Any:
    """The model with operations done to its tensors as its architecture says, loaded again."""
    parts = model.architecture
    tensors = {name: tensor.double() for name, tensor in model.tensors.items()}
    untie(parts, tensors)
    for operation in operations:
        OPERATIONS[operation](parts, tensors)
    config = json.loads(json.dumps(model.config))
    text = config.get("text_config", config)
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    if "fuse-norms" in operations and parts.bias_switch:
        text[parts.bias_switch.key] = True
    return load(write(folder, config, tensors))


def error_of(model: Tiny, operations: Sequence[Operation], folder: Path) -> float:
    return difference(logits(operated(model, operations, folder)), model.logits)


EVERY = pytest.mark.parametrize("name", MODELS)


# ---- Declarations, proved


@pytest.mark.parametrize("name", ["opt", "opt_unbiased", "starcoder2", "starcoder2_unbiased"])
def test_biases_go_into_the_linears_unless_these_can_hold_none(name: str, tiny: Models) -> None:
    parts = tiny(name).architecture
    assert {norm.bias for norm in parts.norms[:-1]} == {"linears"}
    assert parts.norms[-1].bias == "norm"
    linears = {*parts.readers, *parts.writers} - {parts.lm_head}
    switched = {*parts.bias_switch.linears} if parts.bias_switch else set()
    assert switched == (linears if name.endswith("unbiased") else set())


@EVERY
@pytest.mark.parametrize(("tied", "hidden"), [(False, 64), (True, 72)])
def test_exact_operations(name: str, tied: bool, hidden: int, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name, tied=tied, hidden=hidden)
    assert model.architecture.tied == tied
    chains: list[tuple[Operation, ...]] = [
        ("fuse-norms",),
        ("center",),
        ("R2",),
        ("fuse-norms", "R1"),
        ("fuse-norms", "center", "R1", "R2"),
    ]
    done = [chain for chain in chains if model.allows(*chain)]
    errors = {
        "+".join(chain): error_of(model, chain, tmp_path / str(i)) for i, chain in enumerate(done)
    }
    assert errors
    assert all(error <= EXACT for error in errors.values()), errors


@pytest.mark.parametrize("name", ["llama", "starcoder2"])
def test_a_width_that_is_no_power_of_two(name: str, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name, hidden=576)
    assert error_of(model, ("fuse-norms", "R1", "R2"), tmp_path) <= EXACT


@EVERY
def test_fused_norms_are_ones(name: str, tiny: Models) -> None:
    model = tiny(name)
    tensors = {name: tensor.double() for name, tensor in model.tensors.items()}
    fuse_norms(model.architecture, tensors)
    kept = {f"{norm}.weight" for norm in model.architecture.kept_norms}
    offset = model.architecture.gain_offset
    stream = model.architecture.hidden_size
    for tensor, values in tensors.items():
        is_norm = "norm" in tensor and tensor.endswith(".weight") and "tower" not in tensor
        if is_norm and values.shape == (stream,):
            is_one = bool((values + offset == 1).all())
            assert is_one == (tensor not in kept and ".q_norm." not in tensor), tensor


@pytest.mark.parametrize("name", ["cohere", "opt", "starcoder2"])
def test_centred_streams_have_no_mean(name: str, tiny: Models, tmp_path: Path) -> None:
    model = operated(tiny(name), ("center",), tmp_path)
    with torch.no_grad():
        states = model(input_ids=tokens(), output_hidden_states=True).hidden_states
    for state in states[:-1]:  # the last one is behind the final norm
        assert float(state.mean(-1).abs().max()) < 1e-5 * float(state.abs().max())


# Experts are one packed tensor in memory, so that nothing can be hooked between their halves.
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"gemma3", "mixtral"}))
def test_r4_goes_between_the_halves_of_an_mlp(name: str, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name)
    outputs = [mlp.output for mlp in model.architecture.mlps if ".experts." not in mlp.output]
    tensors = dict(model.tensors)
    rotations = {}
    for i, output in enumerate(outputs):
        weight = tensors[f"{output}.weight"].double()
        rotations[output] = orthogonal(weight.shape[1], i)
        tensors[f"{output}.weight"] = weight @ rotations[output]
    changed = load(write(tmp_path, model.config, tensors))
    assert difference(logits(changed), model.logits) > WRONG
    for output in outputs:
        rotation = rotations[output].float()
        changed.get_submodule(output).register_forward_pre_hook(
            lambda _, inputs, rotation=rotation: (inputs[0] @ rotation,)
        )
    assert difference(logits(changed), model.logits) <= EXACT


@pytest.mark.parametrize("name", ["cohere", "deepseek_v3", "phi3", "qwen2_moe", "starcoder2"])
@pytest.mark.parametrize("operation", ["fuse-norms", "R1", "R2"])
def test_every_change_is_needed(
    name: str, operation: Operation, tiny: Models, tmp_path: Path
) -> None:
    """Forgetting one kind of tensor, as a wrong declaration would, changes the model."""
    model = tiny(name)
    before = {name: tensor.double() for name, tensor in model.tensors.items()}
    if operation == "R1":
        fuse_norms(model.architecture, before)
    after = dict(before)
    OPERATIONS[operation](model.architecture, after)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    kinds = {".".join(name.split(".")[-2:]) for name in changed}
    assert kinds
    for kind in kinds:
        forgotten = {name: before[name] for name in changed if name.endswith(kind)}
        wrong = load(write(tmp_path / kind, model.config, {**after, **forgotten}))
        assert difference(logits(wrong), model.logits) > 10 * EXACT, kind


@pytest.mark.parametrize("name", ["llama", "opt", "opt_projected"])
@pytest.mark.parametrize("tied", [False, True])
def test_who_needs_a_head_of_its_own(name: str, tied: bool, tiny: Models) -> None:
    assert tiny(name, tied=tied).architecture.unties_for_stream == (
        tied and name != "opt_projected"
    )


# ---- Refusals


@pytest.mark.parametrize(
    ("name", "operation", "reason"),
    [
        ("gemma2", "R1", "model.layers.0.post_attention_layernorm"),
        ("gemma3_text", "R1", "model.layers.0.post_attention_layernorm"),
        ("olmo2", "R1", "model.layers.0.post_attention_layernorm"),
        ("opt_post_norm", "R1", "model.decoder.layers.0.self_attn_layer_norm"),
        ("opt_post_norm", "center", "model.decoder.layers.0.self_attn_layer_norm"),
        ("opt_no_final_norm", "center", "the head reads the stream"),
        ("llama", "center", "RMSNorm"),
    ],
)
def test_a_refused_operation_is_inexact(
    name: str, operation: Operation, reason: str, tiny: Models, tmp_path: Path
) -> None:
    model = tiny(name)
    with pytest.raises(CtcliError) as refusal:
        model.architecture.require("R2", operation)
    (problem,) = refusal.value.problems
    assert problem.startswith(f"{model.architecture.family}: {operation} ")
    assert reason in problem
    chain: tuple[Operation, ...] = ("fuse-norms", operation) if operation == "R1" else (operation,)
    assert error_of(model, chain, tmp_path) > WRONG


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("gemma2", {"R1", "center"}),
        ("gemma3", {"R1", "center"}),
        ("opt_post_norm", {"fuse-norms", "R1", "center"}),
        ("deepseek_v3", {"R3", "center"}),
        ("llama", {"center"}),
        ("cohere", set()),
    ],
)
def test_nothing_else_is_refused(name: str, operations: set[str], tiny: Models) -> None:
    assert tiny(name).architecture.refusals.keys() == operations


def test_towers_are_left_alone_and_rule_out_r1(tiny: Models) -> None:
    text = tiny("llama", tied=True)
    shapes = {f"language_model.{name}": shape for name, shape in text.shapes.items()}
    shapes["multi_modal_projector.linear_1.weight"] = (64, 16)
    found = resolve({"model_type": "llava", "text_config": text.config}, shapes)
    assert found.tied
    assert found.lm_head == "language_model.lm_head"
    assert found.refusals.keys() == {"R1", "center"}
    assert "multi_modal_projector.linear_1.weight" in found.refusals["R1"]


def test_layers_for_further_tokens_are_left_alone_and_rule_out_fusing(tiny: Models) -> None:
    model = tiny("deepseek_v3")
    further = {"model.layers.2.eh_proj.weight": (64, 128), "model.layers.2.enorm.weight": (64,)}
    found = resolve(model.config, {**model.shapes, **further})
    assert found.refusals.keys() == {"R1", "R3", "center", "fuse-norms"}
    assert "model.layers.2." in found.refusals["fuse-norms"]


def test_clipped_values_cannot_be_rotated(tiny: Models) -> None:
    model = tiny("llama")
    assert "clip_qkv" in resolve({**model.config, "clip_qkv": 8.0}, model.shapes).refusals["R2"]


# ---- What does not fit


def problems_of(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    with pytest.raises(CtcliError) as refusal:
        resolve(config, shapes)
    assert refusal.value.hint
    return refusal.value.problems


@EVERY
def test_every_tensor_is_needed_or_known(name: str, tiny: Models) -> None:
    model = tiny(name)
    optional = re.compile(r".*(\.bias|_correction_bias|[qk]_norm\.weight)|.*(vision|multi_modal).*")
    for tensor in model.shapes:
        if not optional.fullmatch(tensor):
            fewer = {n: s for n, s in model.shapes.items() if n != tensor}
            # Without one of OPT's two projections, the other one is out of place.
            part = "project" if "project" in tensor else tensor
            assert any(part in problem for problem in problems_of(model.config, fewer)), tensor


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_packed_experts(name: str, tiny: Models) -> None:
    model = tiny(name)
    shapes = {n: s for n, s in model.shapes.items() if ".experts." not in n}
    parent = "model.layers.0." + ("block_sparse_moe" if name == "mixtral" else "mlp")
    shapes[f"{parent}.experts.gate_up_proj"] = (4, 64, 64)
    assert "model.layers.0" in problems_of(model.config, shapes)[0]


@pytest.mark.parametrize(
    "stranger",
    [
        "score.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.1.cross_attn.q_proj.weight",
        "model.layers.0.input_layernorm.bias",
        "model.per_layer_embeddings.weight",
        "lm_head.bias",
        "model.layers.0.mlp.experts.gate_up_proj",
    ],
)
def test_unknown_tensors(stranger: str, tiny: Models) -> None:
    model = tiny("llama")
    (problem,) = problems_of(model.config, {**model.shapes, stranger: (64, 64)})
    assert problem.startswith(f"llama: {stranger}: ")


def test_old_buffers_are_known(tiny: Models) -> None:
    model = tiny("llama")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}
    assert resolve(model.config, {**model.shapes, **buffer}) == model.architecture


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.weight"),
        ("llama", "model.layers.1.self_attn.v_proj.weight"),
        ("llama", "model.layers.1.self_attn.o_proj.bias"),
        ("llama", "model.layers.0.mlp.up_proj.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
        ("deepseek_v3", "model.layers.1.self_attn.kv_b_proj.weight"),
        ("deepseek_v3", "model.layers.1.self_attn.q_a_layernorm.weight"),
        ("qwen2_moe", "model.layers.1.mlp.gate.weight"),
        ("qwen2_moe", "model.layers.1.mlp.experts.3.down_proj.weight"),
        ("opt", "model.decoder.embed_positions.weight"),
        ("opt_projected", "lm_head.weight"),
    ],
)
def test_wrong_shapes(name: str, tensor: str, tiny: Models) -> None:
    model = tiny(name)
    shape = tuple(size + 1 for size in model.shapes[tensor])
    problems = problems_of(model.config, {**model.shapes, tensor: shape})
    family = model.architecture.family
    assert any(p.startswith(f"{family}: {tensor} has the shape {list(shape)}") for p in problems)


def test_heads_that_do_not_divide(tiny: Models) -> None:
    model = tiny("mistral")
    shapes = model.shapes
    for layer in range(2):
        for part in "kv":
            shapes[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = (3 * 24, 64)
    problems = problems_of({**model.config, "num_key_value_heads": 3}, shapes)
    assert [p.partition(",")[0] for p in problems] == [
        f"mistral: model.layers.{layer}.self_attn has 4 query heads" for layer in range(2)
    ]


def test_all_problems_are_told(tiny: Models) -> None:
    model = tiny("llama")
    strangers = {f"extra.{i}.weight": (1,) for i in range(30)}
    problems = problems_of(model.config, {**model.shapes, **strangers})
    assert len(problems) == 30


def test_an_untied_model_needs_its_head(tiny: Models) -> None:
    model = tiny("llama", tied=True)
    config = {**model.config, "tie_word_embeddings": False}
    assert problems_of(config, model.shapes) == ("llama: lm_head.weight is missing.",)


def test_an_unknown_model_type(tiny: Models) -> None:
    with pytest.raises(CtcliError) as refusal:
        resolve({"model_type": "qwen9"}, tiny("llama").shapes)
    assert "'qwen9'" in refusal.value.problems[0]
    assert "qwen3" in refusal.value.problems[0]
    assert "--mapping FILE" in refusal.value.hint


def test_the_class_tells_where_no_model_type_does(tiny: Models) -> None:
    model = tiny("qwen2_moe")
    config = {key: value for key, value in model.config.items() if key != "model_type"}
    assert resolve(config, model.shapes) == model.architecture


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "qwen3"])
def test_a_config_that_leaves_heads_to_the_shapes(name: str, tmp_path: Path) -> None:
    """Published configs leave out what equals the default of their class."""
    defaults: dict[str, dict[str, Any]] = {"gemma3": {"head_dim": 256}, "qwen3": {"head_dim": 128}}
    overrides = defaults.get(name, {})
    config, tensors = read(make(name, tmp_path, **overrides))
    shapes = {n: tuple(t.shape) for n, t in tensors.items()}
    text = dict(config.get("text_config", config))
    for key in ("num_key_value_heads", "head_dim"):
        text.pop(key, None)
    if overrides:
        del text["num_attention_heads"]
    shorter = {**config, "text_config": text} if "text_config" in config else text
    assert resolve(shorter, shapes) == resolve(config, shapes)


def test_a_config_without_a_size(tiny: Models) -> None:
    model = tiny("llama")
    assert "hidden_size" in problems_of({**model.config, "hidden_size": None}, model.shapes)[0]


# ---- One table for one fact


@EVERY
def test_fused_sets_are_read_behind_one_norm(name: str, tiny: Models) -> None:
    model = tiny(name)
    norms = {linear: norm for norm in model.architecture.norms for linear in norm.linears}
    readers = {*model.architecture.readers}
    for fused in fused_sets(n for n in model.shapes if "tower" not in n):
        members = {f"{fused.parent}.{member}" for member in fused.members}
        assert members <= readers
        assert len({norms.get(member) for member in members}) == 1


@EVERY
def test_routers_and_heads_are_protected_from_quantization(name: str, tiny: Models) -> None:
    parts = tiny(name).architecture
    kinds = {kind_of(router) for router in parts.routers}
    assert kinds <= {"router"}
    assert kind_of(parts.lm_head) == "head"
    assert {kind_of(e) for e in parts.embeddings} <= {"embedding"}


# ---- Mapping files


def changed_mapping(*changes: tuple[str, str]) -> str:
    text = LLAMA_MAPPING
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


# What the file says instead, for other families.
CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "llama": (),
    "gemma": (("embedding =", "gain_offset = 1.0\nattn_head_dim = 24\nembedding ="),),
    "starcoder2": (
        ("embedding =", 'norm_kind = "layer"\nembedding ='),
        ('"re:.*gate_proj$", "re:.*up_proj$"', '"re:.*c_fc$"'),
        ('"re:.*down_proj$"', '"re:.*c_proj$"'),
    ),
    "qwen2_moe": (
        (
            '"re:.*gate_proj$", "re:.*up_proj$"',
            '"re:.*gate_proj$", "re:.*up_proj$", "re:.*gate$", "re:.*shared_expert_gate$"',
        ),
    ),
    "qwen3": (("embedding =", 'ignore = ["re:.*[qk]_norm"]\nembedding ='),),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_mapping_says_what_a_declaration_says(name: str, tied: bool, tiny: Models) -> None:
    model = tiny(name, tied=tied)
    mapping = parse_mapping("model.toml", changed_mapping(*CHANGES[name]))
    found = resolve_mapping(mapping, model.config, model.shapes)
    if name == "qwen2_moe":  # where only the order within a layer may differ
        assert {*found.readers} == {*model.architecture.readers}
        assert {*found.writers} == {*model.architecture.writers}
        for norm, expected in zip(found.norms, model.architecture.norms, strict=True):
            assert {*norm.linears} == {*expected.linears}
    else:
        assert found == model.architecture


def test_a_mapping_in_json() -> None:
    text = json.dumps(tomllib.loads(LLAMA_MAPPING) | {"attn_head_dim": None})
    assert parse_mapping("model.json", text) == parse_mapping("model.toml", LLAMA_MAPPING)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embedding = ", ["mapping.toml: "]),
        (changed_mapping(("attn_o =", "attn_out =")), ["attn_out is no key", "attn_o is missing"]),
        (changed_mapping(("mlp_out = [", "mlp_out = [1, ")), ["mlp_out cannot be"]),
        (changed_mapping(("embedding =", 'norm_kind = "group"\nembedding =')), ["norm_kind"]),
        (changed_mapping(("embedding =", "attn_head_dim = 0\nembedding =")), ["attn_head_dim"]),
        (
            changed_mapping(('norm = "model.norm"', 'nrom = "model.norm"')),
            ["norms[2]: nrom is no key (near it: norm)", "norms[2]: norm is missing"],
        ),
    ],
)
def test_mapping_files_that_are_wrong(text: str, expected: list[str]) -> None:
    with pytest.raises(CtcliError) as refusal:
        parse_mapping("mapping.toml", text)
    assert len(refusal.value.problems) == len(expected)
    for problem, part in zip(refusal.value.problems, expected, strict=True):
        assert problem.startswith("mapping.toml: ")
        assert part in problem


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("llama", [("model.embed_tokens", "model.embed")], "pattern 'model.embed' matches no"),
        ("llama", [('"re:.*q_proj$", ', "")], "q_proj reads the residual stream, and no norms"),
        ("llama", [('["lm_head"]', '["lm_head", "re:.*gate"]')], "gate_proj reads the residual"),
        (
            "llama",
            [('linears = ["lm_head"]', 'linears = ["lm_head", "re:.*down"]')],
            "down_proj is",
        ),
        ("llama", [('attn_o = "re:.*o_proj$"', 'attn_o = "re:.*_proj$"')], "attn_o"),
        ("llama", [("embedding =", "attn_head_dim = 12\nembedding =")], "q_proj.weight has the"),
        ("qwen2_moe", [], "model.layers.0.mlp.gate.weight: no part of the model"),
        ("qwen3", [], "model.layers.0.self_attn.k_norm.weight: no part of the model"),
        (
            "phi3",
            [
                ("re:.*q_proj$", "re:.*qkv_proj$"),
                ("re:.*k_proj$", "re:.*qkv_proj$"),
                ("re:.*v_proj$", "re:.*qkv_proj$"),
                ('"re:.*gate_proj$", "re:.*up_proj$"', '"re:.*gate_up_proj$"'),
            ],
            "come from one linear",
        ),
    ],
)
def test_mappings_that_do_not_fit(
    name: str, changes: list[tuple[str, str]], expected: str, tiny: Models
) -> None:
    model = tiny(name)
    text = changed_mapping(*changes)
    with pytest.raises(CtcliError) as refusal:
        resolve_mapping(parse_mapping("m.toml", text), model.config, model.shapes)
    assert any(expected in problem for problem in refusal.value.problems), refusal.value.problems
