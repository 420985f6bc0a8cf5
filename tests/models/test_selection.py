"""Which modules are quantized by default: held against the classes that transformers builds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ctcli.models.protected import Kind, kind_of
from tests.helpers.every_model import TYPES, config_of

LAYER = "model.layers.3"
# Linears of transformers, by pattern, that stay whole: too small to be worth it, or built without
# quantization by vLLM 0.32.
WHOLE: Mapping[str, str] = {
    r".*\.(router|gate|router\.gate|router\.layer|gate\.wg|router\.classifier)": "routers",
    r".*\.shared_expert_gate": "a router of one row",
    r".*\.altup\..*|model\.altup_(unembed_)?projections\.0": "few rows, or once in a model",
    r".*\.laurel\.linear_(left|right)": "a low rank beside each layer",
    r".*\bper_layer_(input_gate|projection|model_projection)": "what a layer gets of the token",
    r".*\.linear_attn\.in_proj_(a|b|ba)": "a row for each head",
    r".*\.indexer\.(wk|(scorer\.)?weights_proj)": "vLLM does not quantize them, merged or not",
    r".*\.compressor\.(indexer\.)?(kv|gate)_proj": "vLLM merges the two, and the same holds",
    r"(.*\.)?(lm_head(\.dense)?|embed_out|head|output_projection|decoder)": "heads",
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of transformers' own modules
@pytest.mark.parametrize("model_type", TYPES)
def test_selection_is_what_transformers_builds_as_linears(model_type: str) -> None:
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config_of(model_type))
    problems = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
            continue
        is_linear, kind = isinstance(module, torch.nn.Linear), kind_of(name)
        alike = re.sub("[0-9]+", "0", name)
        is_whole = any(re.fullmatch(pattern, alike) for pattern in WHOLE)
        is_taken = kind is None and type(module).__name__ != "Conv1D"
        if is_taken != (is_linear and not is_whole):
            problems.append(f"{name}: {type(module).__name__}, kind {kind}")
    assert problems == []


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "embedding",
            "model.language_model.embed_tokens_per_layer transformer.tokens_embed "
            "transformer.h.0.attn.relative_attention_bias transformer.w model.embed_tokens",
        ),
        ("head", "lm_head transformer.output_layer embed_out output_projection output"),
        ("classifier", "score classifier v_head.summary model.reward_head.0 qa_outputs"),
        (
            "gate",
            f"{LAYER}.linear_attn.in_proj_a {LAYER}.linear_attn.in_proj_b "
            f"{LAYER}.linear_attn.in_proj_ba {LAYER}.attn_res_proj {LAYER}.mlp_res_proj "
            f"{LAYER}.self_attn.indexer.weights_proj {LAYER}.self_attn.indexer.wk",
        ),
        (
            "side",
            f"{LAYER}.altup.correction_coefs model.altup_projections.0 {LAYER}.laurel.linear_left "
            f"{LAYER}.per_layer_input_gate model.language_model.per_layer_model_projection",
        ),
        (
            "tower",
            "model.embed_vision.embedding_projection visual.patch_merger.mlp.0 mlp1.1 "
            "resampler.attn.in_proj model.perceiver.layers.0.q_proj aligner.layers.0 "
            "multi_modal_projector.linear_1 model.projector.layers.0 model.sam_model.neck.0 "
            "whisper_encoder.layers.0.q_proj vpm.encoder.layers.0.mlp.fc1 apm.layers.0.fc1 "
            "vit.blocks.0.attn.qkv language_projection visual_projection model.merger.linear_fc1 "
            "qformer.encoder.layer.0.attention.attention.query mlp_AR.linear_1",
        ),
        ("convolution", f"{LAYER}.conv.conv {LAYER}.mamba.conv1d {LAYER}.self_attn.q_conv1d"),
        ("draft", "medusa_head.0.linear mtp.fc model.mtp.layers.0.eh_proj"),
        (
            None,
            f"{LAYER}.mlp.gate_proj {LAYER}.self_attn.gate_proj {LAYER}.self_attn.g_proj "
            f"{LAYER}.conv.in_proj {LAYER}.conv.out_proj {LAYER}.self_attn.indexer.wq_b "
            f"{LAYER}.linear_attn.in_proj_qkvz {LAYER}.linear_attn.in_proj_z {LAYER}.mlp.w1 "
            f"{LAYER}.attention.wo transformer.h.0.mlp.c_proj {LAYER}.mamba.in_proj",
        ),
    ],
)
def test_names_of_published_checkpoints(kind: Kind | None, names: str) -> None:
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)
