"""Which linears vLLM 0.32 builds without quantization, and which of one model into one.

Read in its source, by the file in `vllm/model_executor/models` or `vllm/models`; the names are
those of the checkpoints that it loads. A checkpoint in which one of the first is quantized does
not load, and one in which members of a set differ does not, either.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ctcli.models.families import whole_of
from ctcli.models.fused import fused_sets
from ctcli.models.protected import kind_of

LAYER, TEXT = "model.layers.3", "model.language_model.layers.3"
# What is built whole, and linears beside it that take a quantization.
BUILT: Mapping[str, tuple[str, str]] = {
    "bert": ("bert.pooler.dense classifier", "bert.encoder.layer.0.output.dense"),
    "dbrx": (
        "transformer.blocks.0.ffn.router.layer",
        "transformer.blocks.0.norm_attn_norm.attn.Wqkv",
    ),
    "deepseek_v2": (
        f"{LAYER}.mlp.gate {LAYER}.self_attn.indexer.wk {LAYER}.self_attn.indexer.weights_proj",
        f"{LAYER}.self_attn.indexer.wq_b {LAYER}.self_attn.kv_b_proj {LAYER}.self_attn.q_a_proj",
    ),
    "deepseek_mtp": ("model.layers.61.eh_proj", ""),
    "deepseek_v4": (
        "layers.3.ffn.gate layers.3.attn.compressor.wkv layers.3.attn.compressor.wgate "
        "layers.3.attn.indexer.compressor.wkv layers.3.attn.indexer.compressor.wgate "
        "layers.3.attn.indexer.weights_proj mtp.0.e_proj",
        "layers.3.attn.wq_a layers.3.attn.wkv layers.3.attn.wq_b layers.3.attn.wo_a "
        "layers.3.attn.wo_b layers.3.attn.indexer.wq_b layers.3.ffn.shared_experts.w1",
    ),
    "diffusion_gemma": (
        " ".join(f"model.decoder.self_conditioning.{n}_proj" for n in ("gate", "up", "down")),
        "model.decoder.layers.0.mlp.gate_proj",
    ),
    "ernie_mtp": ("model.mtp_linear_proj.0", ""),
    "gemma3n_mm": (
        "model.embed_vision.embedding_projection model.embed_audio.embedding_projection",
        f"{TEXT}.mlp.gate_proj",
    ),
    "gemma4": (f"{TEXT}.router.proj", f"{TEXT}.self_attn.q_proj"),
    "gpt_oss": (f"{LAYER}.mlp.router", f"{LAYER}.self_attn.o_proj"),
    "granite_speech": (
        "encoder.input_linear encoder.layers.0.attn.to_q encoder.layers.0.attn.to_kv "
        "encoder.layers.0.attn.to_out projector.linear",
        "language_model.model.layers.0.mlp.up_proj",
    ),
    "granitemoe": (f"{LAYER}.block_sparse_moe.router.layer", f"{LAYER}.self_attn.o_proj"),
    "internlm2": ("v_head", "model.layers.0.attention.wqkv"),
    "jamba": (f"{LAYER}.feed_forward.router score", f"{LAYER}.feed_forward.experts.0.up_proj"),
    "jina_vl": ("score.0 score.2", ""),
    "kimi_k3": (
        f"{LAYER}.self_attention_res_proj {LAYER}.mlp_res_proj model.output_attn_res_proj "
        f"{LAYER}.block_sparse_moe.gate {LAYER}.self_attn.q_conv1d",
        f"{LAYER}.self_attn.f_a_proj {LAYER}.self_attn.b_proj {LAYER}.self_attn.f_b_proj",
    ),
    "lfm2": (f"{LAYER}.conv.conv", f"{LAYER}.conv.in_proj {LAYER}.conv.out_proj"),
    "llama4": (f"{LAYER}.feed_forward.router", f"{LAYER}.feed_forward.shared_expert.up_proj"),
    "longcat_flash": (f"{LAYER}.mlp.router.classifier", f"{LAYER}.mlps.0.up_proj"),
    "medusa": ("medusa_head.0.0.linear", ""),
    "mimo_mtp": ("model.mtp_layers.0.input_proj", ""),
    "minimax_m2": (
        f"{LAYER}.block_sparse_moe.gate",
        f"{LAYER}.block_sparse_moe.experts.0.w1 {LAYER}.self_attn.q_proj",
    ),
    "mistral": ("layers.0.ada_rms_norm_t_cond.0 layers.0.ada_rms_norm_t_cond.2", ""),
    "modernbert": ("head.dense classifier", "model.layers.0.mlp.Wi"),
    "nemotron_h": (
        "backbone.layers.3.mixer.gate backbone.layers.3.mixer.conv1d",
        "backbone.layers.3.mixer.in_proj backbone.layers.3.mixer.out_proj "
        "backbone.layers.3.mixer.fc1_latent_proj",
    ),
    "ovis": ("visual_tokenizer.head.0 vte", "llm.model.layers.0.mlp.up_proj"),
    "qwen3_next": (
        f"{LAYER}.mlp.gate {LAYER}.mlp.shared_expert_gate {LAYER}.linear_attn.conv1d mtp.fc",
        f"{LAYER}.linear_attn.in_proj_qkvz {LAYER}.linear_attn.out_proj",
    ),
    "roberta": ("classifier.dense classifier.out_proj sparse_linear colbert_linear", ""),
    "step3p5": (f"{LAYER}.moe.gate", f"{LAYER}.self_attn.g_proj"),
    "whisper": ("proj_out", "model.decoder.layers.0.fc1"),
    # Towers, and what leads from them.
    "aria": ("multi_modal_projector.feed_forward.linear_in", ""),
    "bailing_moe_v3_vl": ("linear_proj.0 linear_proj.2", ""),
    "clip": ("text_projection visual_projection", ""),
    "colpali": ("custom_text_proj", ""),
    "funaudiochat": ("continuous_audio_tower.layers.0.fc1", ""),
    "kanana_v": ("abstractor.readout.0", ""),
    "minicpmo": ("apm.layers.0.fc1 audio_projection_layer.linear1", ""),
    "mistral3": ("multi_modal_projector.patch_merger.merging_layer", ""),
    "moss_transcribe_diarize": ("vq_adaptor.layers.0", ""),
    "nano_nemotron_vl": ("sound_encoder.encoder.layers.0.linear1 sound_projection.linear1", ""),
    "phi4mm": ("model.embed_tokens_extend.audio_embed.audio_projection.speech.0", ""),
    "pixtral": ("vision_language_adapter.w_in patch_merger.merging_layer", ""),
    "step3_vl": ("vit_large_projector", ""),
}


@pytest.mark.parametrize("file", BUILT)
def test_what_is_built_without_quantization_is_left_alone(file: str) -> None:
    whole, taken = (names.split() for names in BUILT[file])
    assert {name: kind_of(name) is not None for name in whole} == dict.fromkeys(whole, True)
    assert {name: kind_of(name) for name in taken} == dict.fromkeys(taken, None)


@pytest.mark.parametrize(
    ("model_type", "module"), [("jamba", f"{LAYER}.mamba"), ("mamba", "backbone.layers.3.mixer")]
)
def test_the_first_mamba_is_built_without_quantization(model_type: str, module: str) -> None:
    whole = whole_of({"model_type": model_type})
    assert whole
    assert all(whole.fullmatch(f"{module}.{n}_proj") for n in ("in", "x", "dt", "out"))
    assert whole_of({"model_type": "mamba2"}) is None


# Members of one module, by that module's name.
SETS: Mapping[str, str] = {
    **{
        f"{LAYER}.{attention}": "q_proj k_proj v_proj"
        for attention in ("self_attn", "attention", "attn", "mixer")
    },
    "model.layers.1.self_attn": "q_proj k_proj v_proj b_proj f_a_proj",
    "model.layers.2.self_attn": "q_a_proj kv_a_proj_with_mqa",
    "layers.0.attn": "wq_a wkv",
    "layers.1.attn": "wq_a wkv_a_with_mqa",
    "layers.0.attn.compressor": "wkv wgate",
    "layers.0.attn.indexer.compressor": "wkv wgate",
    "layers.0.attention": "wq wk wv",
    "model.llm.layers.0.attn": "wq_du wk_dv wv_dv wr_du",
    "bert.encoder.layer.0.attention.self": "query key value",
    "model.decoder.layers.0.encoder_attn": "k_proj v_proj",
    f"{LAYER}.linear_attn": "in_proj_qkv in_proj_z",
    "model.layers.4.linear_attn": "in_proj_b in_proj_a",
    "model.layers.5.linear_attn": "q_proj k_proj v_proj g_proj",
    f"{LAYER}.self_attn.indexer": "wk weights_proj",
    f"{LAYER}.mlp": "gate_proj up_proj",
    f"{LAYER}.mlp.experts.7": "gate_proj up_proj",
    f"{LAYER}.feed_forward.shared_expert": "gate_proj up_proj",
    f"{LAYER}.block_sparse_moe.experts.7": "w1 w3",
    "model.layers.0.feed_forward": "w1 w3",
    "transformer.h.0.mlp": "c_fc_0 c_fc_1",
}


@pytest.mark.parametrize("module", SETS)
def test_what_is_merged_is_a_fused_set(module: str) -> None:
    members = SETS[module].split()
    beside = ("o_proj", "wo", "wq_b", "w2", "down_proj", "out_proj", "q_norm", "f_b_proj")
    names = [f"{module}.{name}.weight" for name in (*beside, *reversed(members))]
    (found,) = fused_sets(names)
    assert (found.parent, set(found.members)) == (module, set(members))


def test_sets_of_one_module_stay_apart() -> None:
    """Those that share a member's name, and both of one linear attention."""
    attention = "layers.0.attn"
    names = ("wq_a", "wkv", "compressor.wkv", "compressor.wgate")
    found = fused_sets(f"{attention}.{name}.weight" for name in names)
    assert [(each.parent, each.members) for each in found] == [
        (attention, ("wq_a", "wkv")),
        (f"{attention}.compressor", ("wkv", "wgate")),
    ]
    linear = ("in_proj_qkv", "in_proj_b", "in_proj_z", "in_proj_a")
    found = fused_sets(f"{LAYER}.linear_attn.{name}.weight" for name in linear)
    assert [each.members for each in found] == [
        ("in_proj_qkv", "in_proj_z"),
        ("in_proj_b", "in_proj_a"),
    ]
