"""A tiny config for every decoder-only model type of transformers.

What no type needs told apart comes from `SIZES`, as far as its config has the key; `_OWN` holds
what else a type wants to be small, and to exercise each kind of layer that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 128
# Registered as causal language models, and no decoders of text alone: encoders with a head,
# decoders of encoder-decoder models, models of several modalities (their text model is a type of
# its own), drafts, and bytes in patches.
_OTHERS = (
    "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small "
    "camembert data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart "
    "prophetnet reformer rembert roberta roberta-prelayernorm roc_bert roformer trocr "
    "whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod moshi musicgen musicgen_melody git "
    "mllama fuyu got_ocr2 emu3 phi4_multimodal gemma3 gemma3n gemma4 gemma4_unified "
    "gemma4_assistant gemma4_unified_assistant llama4 qwen3_5 qwen3_5_moe qwen4_exp "
    "cpmant blt "
)
TYPES: tuple[str, ...] = tuple(sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*_OTHERS.split()}))

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head", "head_dim"), 16),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "shared_expert_intermediate_size"), 40),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 40),
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_dt_rank": 4,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDTHS = ("hidden_size", "n_embd", "d_model", "embedding_dim")
_MLA = {"head_dim": 8, "num_key_value_heads": 4}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_OWN: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
        _MLA,
    ),
    **dict.fromkeys(("glm_moe_dsa", "hy_v4", "longcat_flash", "minicpm3"), _MLA),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"), _LINEAR_AND_FULL
    ),
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"],
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {
        **_MLA,
        **_LINEAR_AND_FULL,
        "mlp_layer_types": ["dense", "sparse"],
        "linear_num_heads": 4,
        "linear_head_dim": 16,
        "q_lora_rank": None,
    },
    "jetmoe": {"kv_channels": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {**_MLA, "zero_expert_num": 0},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "qwen4_exp_text": {
        **_LINEAR_AND_FULL,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64},
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba": {
        "num_hidden_layers": 3,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "num_key_value_heads": 4,
    },
    "youtu": {**_MLA, "pad_token_id": None},  # whose row transformers empties if the head is tied
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def config_of(model_type: str, *, tied: bool = False, hidden: int = 64, **more: Any) -> Any:
    """A tiny config.

    Args:
        model_type: one of `TYPES`.
        tied: whether head and embedding are one.
        hidden: width of the residual stream; a multiple of 8.
        more: further keys.
    """
    made = CONFIG_MAPPING[model_type]
    known = {*made().to_dict(), *made.attribute_map}
    values = {key: value for key, value in SIZES.items() if key in known}
    values |= {key: hidden for key in _WIDTHS if key in known}
    values = {**values, "tie_word_embeddings": tied, **_OWN.get(model_type, {}), **more}
    return made(**values)
