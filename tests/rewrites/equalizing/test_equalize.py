"""equalize: every family computes the same, with the factors that Sinkhorn's scaling has."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctcli.errors import CtcliError
from ctcli.rewrites.equalizing.equalize import equalize
from ctcli.rewrites.equalizing.options import EqualizeOptions
from ctcli.storage.opening import open_checkpoint
from tests.conftest import Ctcli
from tests.helpers.architectures import made
from tests.helpers.checkpoints import tensor_hashes
from tests.helpers.operating import run_equalize, run_steps
from tests.helpers.sinkhorn import column_factors, shared_by_heads
from tests.helpers.tiny_models import (
    EXACT,
    LLAMA_MAPPING,
    MODELS,
    Models,
    difference,
    load,
    logits,
    make,
    read,
    restore,
)

# Factors have twelve significant bits.
STEP = 2.0**-12
LAYER = "model.layers.1."
NORM, ATTENTION_NORM = f"{LAYER}post_attention_layernorm", f"{LAYER}input_layernorm"
GATE, UP, DOWN = (f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
Q, K, V, O = (f"{LAYER}self_attn.{name}_proj.weight" for name in "qkvo")  # noqa: E741


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("tied", "rounds"), [(False, 1), (True, 3)], ids=["untied", "tied"])
def test_the_model_computes_the_same(
    name: str, tied: bool, rounds: int, tiny: Models, tmp_path: Path
) -> None:
    model = tiny(name, tied)
    out = run_equalize(model.folder, tmp_path / "out", rounds=rounds)
    assert model.error(out) <= EXACT
    config, tensors = read(out)
    assert config == model.config
    changed = {name for name, tensor in tensors.items() if not tensor.equal(model.tensors[name])}
    parts = model.architecture
    outputs = {attention.o for attention in parts.attentions} | {m.output for m in parts.mlps}
    inputs = {name for norm in parts.norms for name in norm.linears} - {parts.lm_head}
    if name.startswith("starcoder2"):  # its MLPs have no gate
        outputs -= {mlp.output for mlp in parts.mlps}
    assert {f"{module}.weight" for module in outputs | inputs} <= changed
    kept = {parts.token_embedding, parts.lm_head, *parts.kept_norms}
    assert not {f"{module}.weight" for module in kept} & changed


@pytest.mark.parametrize("hidden", [576, 536])
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3_text", "phi3", "qwen2_moe"])
def test_other_widths_and_seeds(name: str, hidden: int, tiny: Models, tmp_path: Path) -> None:
    model = tiny(name, hidden=hidden)
    assert model.error(run_equalize(model.folder, tmp_path / "out")) <= EXACT


def factors(found: Tensor, before: Tensor) -> Tensor:
    """What each column was multiplied by, from its largest element."""
    at = before.abs().argmax(0, keepdim=True)
    return (found.double().gather(0, at) / before.double().gather(0, at))[0]


@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_factors_are_sinkhorns(rounds: int, tiny: Models, tmp_path: Path) -> None:
    model = tiny("llama")
    before, after = (
        model.tensors,
        read(run_equalize(model.folder, tmp_path / "o", rounds=rounds))[1],
    )
    down = column_factors([before[DOWN]], rounds)
    torch.testing.assert_close(factors(after[DOWN], before[DOWN]), down, rtol=STEP, atol=0)
    rows = (after[UP] / before[UP] * before[UP].sign()).abs()  # of rows and of the norm's columns
    wide = factors(after[GATE], before[GATE])
    expected = column_factors([before[GATE], before[UP]], rounds)
    # Gains are float32 here, and so nothing is lost by rounding them first.
    torch.testing.assert_close(wide, expected, rtol=STEP, atol=0)
    torch.testing.assert_close(
        (rows / wide).double(), (1 / down)[:, None].expand_as(rows), rtol=2 * STEP, atol=0
    )
    heads = shared_by_heads(column_factors([before[O]], rounds), 2, 16)
    torch.testing.assert_close(factors(after[O], before[O]), heads, rtol=STEP, atol=0)
    bias = f"{LAYER}self_attn.v_proj.bias"
    by_value = (before[bias] / after[bias]).double().view(2, 1, 16).expand(2, 2, 16).reshape(-1)
    torch.testing.assert_close(by_value, heads, rtol=STEP, atol=0)


def test_experts_and_routers_share_the_factors_of_their_norm(tiny: Models, tmp_path: Path) -> None:
    model = tiny("qwen2_moe")
    after, mlp = read(run_equalize(model.folder, tmp_path / "out"))[1], f"{LAYER}mlp."
    readers = [f"experts.{n}.{leaf}_proj" for n in range(4) for leaf in ("gate", "up")]
    readers += ["shared_expert.gate_proj", "shared_expert.up_proj", "gate", "shared_expert_gate"]
    weights = [model.tensors[f"{mlp}{name}.weight"] for name in readers]
    expected = column_factors(weights, 1)
    for name in ("experts.2.gate_proj", "shared_expert.gate_proj", "gate", "shared_expert_gate"):
        found = factors(after[f"{mlp}{name}.weight"], model.tensors[f"{mlp}{name}.weight"])
        torch.testing.assert_close(found, expected, rtol=STEP, atol=0)
    gain = after[f"{NORM}.weight"] / model.tensors[f"{NORM}.weight"]
    torch.testing.assert_close(1 / gain.double(), expected, rtol=STEP, atol=0)


@pytest.mark.parametrize(("name", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_columns_follow_the_rounded_gain(name: str, offset: float, tmp_path: Path) -> None:
    """Gains of bfloat16 before weights of float32: their products stay, to float32's rounding."""
    source = make(name, tmp_path / "source")
    tensors = read(source)[1]
    tensors = {k: t.bfloat16() if k.endswith("norm.weight") else t for k, t in tensors.items()}
    restore(source, tensors)
    after = read(run_equalize(source, tmp_path / "out"))[1]
    for norm, linear in ((NORM, GATE), (ATTENTION_NORM, K)):
        old, new = (each[f"{norm}.weight"] for each in (tensors, after))
        assert new.dtype == torch.bfloat16
        assert not new.equal(old)
        found = (new.double() + offset) * after[linear].double()
        expected = (old.double() + offset) * tensors[linear].double()
        torch.testing.assert_close(found, expected, rtol=2.0**-22, atol=0)


def test_zeros_and_extremes_stay_exact(tiny: Models, tmp_path: Path) -> None:
    """Gains of zero and below, columns of zeros, heads half of zeros, factors beyond the bounds."""
    model = tiny("llama")
    tensors = {name: tensor.clone() for name, tensor in model.tensors.items()}
    gain = tensors[f"{NORM}.weight"]
    gain[:3] = torch.tensor([0.0, -0.0, -1.5])
    for name in (GATE, UP):
        tensors[name][:, 3] = 0
        tensors[name][:, 4] *= 1e4
        tensors[name][:, 5] *= 1e-4
        tensors[name][7] = 0
    tensors[O][:, :20] = 0
    tensors[DOWN][:, 9] = 0
    source = restore(make("llama", tmp_path / "source"), tensors)
    out = run_equalize(source, tmp_path / "out")
    after = read(out)[1]
    wide = factors(after[GATE], tensors[GATE])
    assert (wide[[0, 1]] == 1).all()
    assert (after[f"{NORM}.weight"][[0, 1, 3]] == gain[[0, 1, 3]]).all()
    assert after[f"{NORM}.weight"][2] < 0
    assert wide[[4, 5]].tolist() == [1 / 64, 64]
    assert after[GATE][:, 3].count_nonzero() == 0
    expected = model_logits(source)
    assert (model_logits(out) - expected).abs().max() <= EXACT * expected.abs().max()


def model_logits(folder: Path) -> Tensor:
    return logits(load(folder))


def test_nothing_is_rounded_before_quantize(tmp_path: Path) -> None:
    """Codes are those of the exact products: of 16-bit weights and ratios of gains."""
    source = make("llama", tmp_path / "source", dtype=torch.bfloat16)
    scheme = {"use": "quantize", "scheme": "W4A16", "format": "int-quantized", "group_size": 32}
    found = read(run_steps(source, tmp_path / "run", {"use": "equalize"}, scheme))[1]
    before = read(source)[1]
    ratio = before[f"{ATTENTION_NORM}.weight"].double() / found[f"{ATTENTION_NORM}.weight"].double()
    name = Q.removesuffix("weight")
    exact = before[Q].float() * ratio.float()
    groups = exact.view(-1, 2, 32)
    scales = (groups.abs().amax(2) / 7.5).bfloat16()
    codes = (groups / scales.float()[..., None]).round().clamp(-8, 7).view(exact.shape)
    assert found[f"{name}weight_scale"].equal(scales)
    assert found[f"{name}weight"].equal(codes.to(torch.int8))
    chained = run_steps(run_equalize(source, tmp_path / "even"), tmp_path / "chained", scheme)
    assert not read(chained)[1][f"{name}weight"].equal(codes.to(torch.int8))


def test_workers_make_no_difference(pylm: Path, tmp_path: Path) -> None:
    out = {n: run_equalize(pylm, tmp_path / str(n), workers=n, rounds=2) for n in (1, 2, 5)}
    assert tensor_hashes(out[1]) == tensor_hashes(out[2]) == tensor_hashes(out[5])


def test_a_mapping_does_what_the_family_does(tiny: Models, tmp_path: Path) -> None:
    model, mapping = tiny("llama"), tmp_path / "mapping.toml"
    mapping.write_text(LLAMA_MAPPING)
    described = run_equalize(model.folder, tmp_path / "described", mapping=mapping)
    assert tensor_hashes(described) == tensor_hashes(run_equalize(model.folder, tmp_path / "known"))


@pytest.mark.parametrize(
    "steps",
    [({"use": "rotate"},), ({"use": "fuse-norms"}, {"use": "equalize"}, {"use": "fuse-norms"})],
    ids=["rotate", "twice"],
)
@pytest.mark.parametrize("name", ["llama", "gemma", "opt"])
def test_it_follows_other_steps(
    name: str, steps: tuple[dict[str, Any], ...], tiny: Models, tmp_path: Path
) -> None:
    model = tiny(name)
    out = run_steps(model.folder, tmp_path / "out", *steps, {"use": "equalize", "rounds": 2})
    assert model.error(out) <= EXACT
    before = run_steps(model.folder, tmp_path / "before", *steps)
    assert tensor_hashes(before) != tensor_hashes(out)


def report(folder: Path, mapping: Path | None = None) -> dict[str, str]:
    """What is scaled, and what is left alone and why."""
    _, found = equalize(open_checkpoint(str(folder)), EqualizeOptions(mapping=mapping))
    return dict(found.changes)


@pytest.mark.parametrize(
    ("name", "config", "part", "reason"),
    [
        ("starcoder2", {}, "up and down", "c_fc goes through an activation that is not linear"),
        ("opt", {"activation_function": "gelu"}, "up and down", "not linear (gelu)"),
        ("llama", {"clip_qkv": 4.0}, "v and o", "clip_qkv cuts queries, keys and values off"),
        ("llama", {"swiglu_limit": 7.0}, "up and down", "swiglu_limit cuts gate and up off"),
        ("opt_plain_norms", {}, "norms", "no norm with a gain feeds"),
    ],
)
def test_parts_that_would_not_be_exact_are_left_alone(
    name: str, config: dict[str, Any], part: str, reason: str, tmp_path: Path
) -> None:
    source = make(name, tmp_path / "source")
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    said = report(source)
    assert reason in said[f"left alone: {part}"]
    assert part not in said
    before, after = read(source)[1], read(run_equalize(source, tmp_path / "out"))[1]
    kept = {"norms": "q_proj", "up and down": "c_proj", "v and o": "o_proj"}[part]
    names = [name for name in before if name.endswith(f"1.self_attn.{kept}.weight")]
    for each in names if part != "up and down" else []:
        assert torch.equal(after[each], before[each]) or part == "norms"


@pytest.mark.parametrize(
    ("name", "is_normed"), [("bitnet", True), ("diffllama", True), ("gpt_neox_japanese", False)]
)
def test_heads_behind_a_norm_are_left_alone(name: str, is_normed: bool, tmp_path: Path) -> None:
    source = made(tmp_path / "source", name, tied=False)
    why = report(source).get("left alone: v and o", "")
    assert why.startswith("what the heads make is normalised before ") == is_normed
    expected = model_logits(source)
    found = model_logits(run_equalize(source, tmp_path / "out"))
    assert difference(found, expected) <= EXACT


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("self_attn.v_norm.weight", "v and o"),
        ("self_attn.sub_norm.weight", "v and o"),
        ("mlp.inner_norm.weight", "up and down"),
        ("self_attn.q_norm.weight", None),
        ("self_attn.rotary_emb.inv_freq", None),
    ],
)
def test_what_a_mapping_ignores_may_stand_between(
    tensor: str, part: str | None, tmp_path: Path
) -> None:
    source = make("llama", tmp_path / "source")
    restore(source, {**read(source)[1], f"{LAYER}{tensor}": torch.ones(16)})
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(f'ignore = ["re:.*{tensor.removesuffix(".weight")}$"]\n{LLAMA_MAPPING}')
    said = {label: text for label, text in report(source, mapping).items() if "left" in label}
    assert list(said) == ([f"left alone: {part}"] if part else [])
    assert all(f"{LAYER}{tensor} may stand" in text for text in said.values())


def test_an_mlp_whose_gate_is_not_known_is_left_alone(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    names = {"gate_proj": "left_proj", "up_proj": "right_proj"}
    tensors = read(source)[1]
    for old, new in names.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    restore(source, tensors)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(
        LLAMA_MAPPING.replace("gate_proj", "left_proj").replace("up_proj", "right_proj")
    )
    reason = report(source, mapping)["left alone: up and down"]
    assert reason.startswith("which rows of model.layers.0.mlp.left_proj, model.layers.0.mlp.right")


def test_where_nothing_is_exact_it_says_why(ctcli: Ctcli, tmp_path: Path) -> None:
    source = make("opt_plain_norms", tmp_path / "source")
    path = source / "config.json"
    changed = {"activation_function": "gelu", "clip_qkv": 1.0}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    done = ctcli("equalize", source, tmp_path / "out")
    assert done.returncode == 1
    assert "opt: norms: no norm with a gain" in done.stderr
    assert "opt: v and o: clip_qkv" in done.stderr
    assert "Quantize it without equalize." in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [GATE, DOWN, f"{NORM}.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name(name: str, value: float, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", dtype=torch.bfloat16)
    tensors = read(source)[1]
    tensors[name].view(-1)[5] = value
    restore(source, tensors)
    with pytest.raises(CtcliError, match="NaN or infinite") as caught:
        run_equalize(source, tmp_path / "out")
    assert name.removesuffix(".weight") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rounds_that_would_have_no_effect_are_refused(ctcli: Ctcli, pylm: Path) -> None:
    done = ctcli("equalize", pylm, "out", "--rounds", "0")
    assert done.returncode == 2


def test_the_dry_run_and_inspect_say_what_is_scaled(ctcli: Ctcli, pylm: Path) -> None:
    done = ctcli("equalize", pylm, "out", "--dry-run", "--json")
    assert json.loads(done.stdout)["changes"] == {
        "norms": "8 norms",
        "up and down": "4 MLPs",
        "v and o": "4 attention blocks",
    }
    told = json.loads(ctcli("inspect", pylm, "--json").stdout)["can_run"]["equalize"]
    assert told["possible"]
    assert told["note"] == "norms, up and down, v and o"
