"""What `ctcli export-bin` refuses, and why: all reasons in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ctcli
from tests.helpers.checkpoints import file_hashes
from tests.helpers.exporting import export, refusal
from tests.helpers.llama2c import write
from tests.helpers.llamas import (
    PARAMS,
    hf_config,
    hf_tensors,
    make_model,
    meta_tensors,
    save,
    save_hf,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "granite"}, "model_type 'granite'"),
        ({"model_type": None}, "model_type None"),
        ({"head_dim": 32}, "head_dim 32: the readers take dim / n_heads, which is 16."),
        ({"rope_theta": 500000.0, "rope_parameters": None}, "rope_theta 500000: both readers"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta 1e+06: both readers compute"),
        (
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0}},
            "RoPE scaling (yarn)",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling (linear)"),
        ({"rope_scaling": {"factor": 2.0}}, "RoPE scaling (of no type)"),
        ({"rope_parameters": {"full_attention": {}}}, "one for each of full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06: both readers add 1e-05."),
        ({"rms_norm_eps": None}, "rms_norm_eps 1e-06"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"sliding_window": 8}, "sliding_window 8"),
        ({"num_hidden_layers": 1}, "no place for a layer beyond the number of layers"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2."),
        ({"vocab_size": 51}, "model.embed_tokens.weight: its shape is [50, 64], not [51, 64]."),
        ({"intermediate_size": 192}, "[96, 64], not [192, 64]: one part of a tensor parallel"),
        ({"num_key_value_heads": 3}, "n_kv_heads 3 does not divide n_heads 4."),
        ({"num_hidden_layers": 2**31 - 1}, "config.json: it has 2147483647 layers, and there are"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "RoPE scaling (['x'])"),
        ({"partial_rotary_factor": [1]}, "partial_rotary_factor"),
        ({"hidden_act": {}}, "hidden_act {}"),
        ({"rope_theta": 10**400, "rope_parameters": None}, "config.json: rope_theta is 1000"),
        ({"hidden_size": "64"}, "config.json: hidden_size is '64', and not a positive number."),
        ({"num_attention_heads": None}, "config.json: num_attention_heads is missing"),
        ({"max_position_embeddings": None}, "for how many positions"),
        ({"rms_norm_eps": -1.0}, "config.json: rms_norm_eps is -1.0"),
        ({"rope_parameters": [10000.0]}, "config.json: rope_parameters is [10000.0]"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized (gptq), and none is."),
    ],
)
def test_a_config_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    problems = refusal(save_hf(tmp_path / "source", make_model(), **changes))
    assert any(reason in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "no place for a bias: "),
        ("model.layers.1.mlp.down_proj.bias", "no place for a bias: "),
        ("model.layers.0.self_attn.q_norm.weight", "no place for norms of queries and keys: "),
        ("model.layers.0.mlp.experts.0.w1.weight", "no place for experts: "),
        ("model.layers.0.block_sparse_moe.gate.weight", "no place for experts: "),
        ("model.layers.2.self_attn.q_proj.weight", "no place for a layer beyond"),
    ],
)
def test_a_tensor_without_a_place_is_refused_by_name(
    tmp_path: Path, name: str, reason: str
) -> None:
    model = make_model()
    tensors = {**hf_tensors(model), name: np.ones(64, np.float32)}
    source = save(tmp_path / "source", tensors, config__json=hf_config(model))
    assert refusal(source) == [
        f"{reason}{name}."
        if reason.endswith(": ")
        else f"no place for a layer beyond the number of layers, or an unknown tensor: {name}."
    ]


def test_all_reasons_come_in_one_go(cli: Ctcli, tmp_path: Path) -> None:
    model = make_model()
    tensors = hf_tensors(model)
    for i in range(2):
        for role in "qkv":
            tensors[f"model.layers.{i}.self_attn.{role}_proj.bias"] = np.ones(64, np.float32)
        tensors[f"model.layers.{i}.self_attn.k_norm.weight"] = np.ones(16, np.float32)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    config = {
        **hf_config(model),
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "llama3"},
        "hidden_act": "gelu",
        "head_dim": 32,
    }
    source = save(tmp_path / "source", tensors, config__json=config)
    done = cli("export-bin", source, tmp_path / "out.bin", "--group-size", "64", "--tokenizer")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for reason in (
        *("model_type", "RoPE scaling (llama3)", "hidden_act", "head_dim 32", "--group-size 64"),
        "missing: model.layers.1.mlp.up_proj.weight.",
        "a bias: model.layers.0.self_attn.k_proj.bias and 5 more like it.",
        "norms of queries and keys: model.layers.0.self_attn.k_norm.weight and 1 more like it.",
        *("--tokenizer: there is neither", "rope_theta 1e+06", "rms_norm_eps 1e-06"),
    ):
        assert sum(reason in line for line in errors) == 1, reason
    assert len(errors) == 11
    assert done.stderr.splitlines()[-1].startswith("next: ")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_allow_nonstandard_lets_a_base_and_an_eps_through_with_warnings(
    cli: Ctcli, tmp_path: Path
) -> None:
    model = make_model()
    source = save_hf(
        tmp_path / "source", model, rms_norm_eps=1e-6, rope_parameters={"rope_theta": 1e6}
    )
    refused = cli("export-bin", source, tmp_path / "out.bin")
    assert refused.returncode == 1
    assert "--allow-nonstandard" in refused.stderr.splitlines()[-1]
    done = cli("export-bin", source, tmp_path / "out.bin", "--allow-nonstandard")
    assert done.returncode == 0, done.stderr
    assert "warning: rope_theta 1e+06: both readers compute RoPE with 10000." in done.stderr
    assert "warning: rms_norm_eps 1e-06: both readers add 1e-05." in done.stderr
    assert (tmp_path / "out.bin").read_bytes() == write(model, 2)
    scaled = save_hf(tmp_path / "scaled", model, rope_scaling={"type": "linear", "factor": 2})
    assert cli("export-bin", scaled, tmp_path / "x.bin", "--allow-nonstandard").returncode == 1


def test_a_sliding_window_is_no_obstacle_to_fewer_positions(tmp_path: Path) -> None:
    source = save_hf(tmp_path / "source", make_model(), model_type="mistral", sliding_window=8)
    (problem,) = refusal(source)
    assert "--max-seq-len 8" in problem
    assert export(source, tmp_path / "out.bin", max_seq_len=8).header.max_seq_len == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"moe": {"num_experts": 8}}, "moe"),
        ({"use_scaled_rope": True}, "RoPE scaling"),
        ({"rope_theta": 1e6}, "rope_theta 1e+06"),
        ({"norm_eps": 1e-6}, "rms_norm_eps 1e-06"),
        ({"head_dim": 8}, "head_dim 8"),
        ({"n_kv_heads": 4}, "layers.0.attention.wk.weight: its shape is [32, 64], not [64, 64]"),
        ({"hidden_dim": 64}, "its shape is [96, 64], not [64, 64]"),
        ({"dim": None}, "params.json: dim is missing"),
    ],
)
def test_params_json_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    params = {**PARAMS, "norm_eps": 1e-5, **changes}
    source = save(tmp_path / "source", meta_tensors(make_model()), params__json=params)
    problems = refusal(source, max_seq_len=16)
    assert any(reason in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "params.json: it is missing"),
        ({"params__json": b"{"}, "params.json: not JSON"),
        ({"params__json": b"[]"}, "params.json: no JSON object"),
        ({"params__json": PARAMS}, "params.json: it does not tell for how many positions"),
    ],
)
def test_metas_names_need_params_json_and_a_length(
    tmp_path: Path, files: dict[str, Any], reason: str
) -> None:
    source = save(tmp_path / "source", meta_tensors(make_model()), **files)
    (problem,) = refusal(source)
    assert reason in problem


def test_other_models_and_dtypes_are_refused(tmp_path: Path) -> None:
    model = make_model()
    other = save(tmp_path / "other", {"transformer.wte.weight": model.embedding})
    assert "no embedding by a name that Llamas give it" in refusal(other)[0]
    tensors = {**hf_tensors(model), "model.norm.weight": np.ones(64, np.float32)}
    whole = save(tmp_path / "whole", tensors, "int32", config__json=hf_config(model))
    assert "model.norm.weight: its dtype is I32, none of F64, F32, F16, BF16." in refusal(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinities_are_refused_by_name_and_number(
    cli: Ctcli, tmp_path: Path, value: float
) -> None:
    model = make_model()
    model.layers["w1"][1][5, 7:9] = value
    source = save_hf(tmp_path / "source", model)
    done = cli("export-bin", source, tmp_path / "out.bin")
    assert done.returncode == 1
    name = "model.layers.1.mlp.gate_proj.weight"
    assert f"error: {name}: 2 of its values are NaN or infinite." in done.stderr
    assert not (tmp_path / "out.bin").exists()


def test_version_0_refuses_tables_that_would_not_fit_in_memory(tmp_path: Path) -> None:
    source = save_hf(tmp_path / "source", make_model())
    (problem,) = refusal(source, version=0, max_seq_len=2**31 - 1)
    assert "give a smaller --max-seq-len" in problem
    assert export(source, tmp_path / "out.bin", max_seq_len=2**31 - 1).header.version == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--group-size", "32", "--version", "1"), "--group-size is for --version 2"),
        (("--max-shard-size", "1GB"), "there is no option --max-shard-size"),
        (("--version", "3"), "--version '3': give a whole number from 0 to 2"),
        (("--max-seq-len", "0"), "--max-seq-len '0': give a whole number from 1 to"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(
    cli: Ctcli, pylm: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = cli("export-bin", pylm, tmp_path / "out.bin", *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not file_hashes(tmp_path)
