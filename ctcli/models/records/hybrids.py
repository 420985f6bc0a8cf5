"""State space models and linear attention, alone or beside attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ctcli.models.family import Attention, Family, Mixer, Mlp, Norm, Refusal
from ctcli.models.records.decoders import PLAIN, QK_NORMS
from ctcli.models.records.experts import (
    EXPERTS,
    GATED,
    GRANITE_MOE,
    GRANITE_SHARED,
)

# Tensors of a mixer between what reads the stream and what writes it.
_MAMBA = (
    r"(A_log|D|dt_bias|conv1d\.(weight|bias)|(x|dt)_proj\.(weight|bias)|(dt|b|c)_layernorm\.weight)"
)
_NO_ATTENTION: tuple[Refusal, ...] = (
    ("R2", "it has no attention"),
    ("R3", "it has no attention"),
    ("R4", "it has no MLP"),
)
_MAMBA1 = Family(
    norms=(Norm("norm", ("mixer",)),),
    attention=None,
    mlps=(),
    mixers=(Mixer("mixer"),),
    root="backbone",
    embedding="embeddings",
    final_norm="norm_f",
    others=(rf"mixer\.{_MAMBA}",),
    tied=True,
    refusals=_NO_ATTENTION,
    whole=(r".*\.mixer\.(in|x|dt|out)_proj",),
)
_BLOCKS = ("attention", "mixer")
_BAMBA = Family(
    norms=(Norm("input_layernorm", _BLOCKS), Norm("pre_ff_layernorm", ("mlp",))),
    mlps=(Mlp("feed_forward"),),
    mixers=(Mixer("mamba"),),
    inner_norms=(("mamba.norm", ("mamba.out_proj",)),),
    final_norm="final_layernorm",
    others=(rf"mamba\.{_MAMBA}",),
)
_JAMBA = replace(
    _BAMBA,
    mlps=(
        Mlp("feed_forward"),
        Mlp("feed_forward.experts.*", routers=("feed_forward.router",)),
    ),
    inner_norms=(),
    whole=(r".*\.mamba\.(in|x|dt|out)_proj",),
)
_LFM2 = Family(
    norms=(Norm("operator_norm", _BLOCKS), Norm("ffn_norm", ("mlp",))),
    attention=Attention(output="out_proj"),
    mlps=(Mlp("feed_forward", ("w1", "w3"), "w2"),),
    mixers=(Mixer("conv"),),
    final_norm="embedding_norm",
    own_width=True,
    others=(r"self_attn\.[qk]_layernorm\.weight", r"conv\.conv\.(weight|bias)"),
    tied=True,
)
_QWEN3_NEXT = replace(
    PLAIN,
    norms=(Norm("input_layernorm", _BLOCKS), Norm("post_attention_layernorm", ("mlp",))),
    attention=Attention(gated=True),
    mlps=(
        Mlp("mlp"),
        EXPERTS,
        Mlp("mlp.shared_expert", routers=("mlp.shared_expert_gate",)),
    ),
    mixers=(
        Mixer("linear_attn", ("in_proj_qkvz", "in_proj_ba")),
        Mixer("linear_attn", ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")),
    ),
    gain_offset=1.0,
    others=(*QK_NORMS, r"linear_attn\.(A_log|dt_bias|conv1d\.weight|norm\.weight)"),
    head_dim=256,
    refusals=(GATED,),
)
_KIMI_EXPERTS = Mlp(
    "block_sparse_moe.experts.*", ("w1", "w3"), "w2", routers=("block_sparse_moe.gate",)
)
_NEMOTRON_MLP = ("up_proj",)

ROWS: Mapping[str, Family] = {
    "bamba": _BAMBA,
    "falcon_h1": _BAMBA,
    "falcon_mamba": _MAMBA1,
    "granitemoehybrid": replace(
        GRANITE_MOE,
        norms=(Norm("input_layernorm", _BLOCKS), Norm("post_attention_layernorm", ("mlp",))),
        mlps=(*GRANITE_MOE.mlps, GRANITE_SHARED),
        mixers=(Mixer("mamba"),),
        inner_norms=_BAMBA.inner_norms,
        others=_BAMBA.others,
    ),
    "jamba": _JAMBA,
    "kimi_linear": replace(
        PLAIN,
        norms=(Norm("input_layernorm", _BLOCKS), Norm("post_attention_layernorm", ("mlp",))),
        attention=Attention("latent"),
        mlps=(
            Mlp("block_sparse_moe"),
            _KIMI_EXPERTS,
            Mlp("block_sparse_moe.shared_experts"),
        ),
        mixers=(
            Mixer(
                "self_attn",
                ("f_a_proj", "q_proj", "k_proj", "v_proj", "b_proj", "g_a_proj"),
                "o_proj",
            ),
        ),
        others=(
            r"self_attn\.(A_log|dt_bias|[fg]_b_proj\.(weight|bias)|[qkv]_conv1d\.weight)",
            r"self_attn\.o_norm\.weight",
            r"block_sparse_moe\.gate\.e_score_correction_bias",
        ),
    ),
    "lfm2": _LFM2,
    "lfm2_moe": replace(
        _LFM2,
        mlps=(
            *_LFM2.mlps,
            Mlp("feed_forward.experts.*", ("w1", "w3"), "w2", routers=("feed_forward.gate",)),
        ),
        others=(*_LFM2.others, r"feed_forward\.expert_bias"),
    ),
    "mamba": _MAMBA1,
    "mamba2": replace(
        _MAMBA1, inner_norms=(("mixer.norm", ("mixer.out_proj",)),), tied=False, whole=()
    ),
    "nemotron_h": Family(
        norms=(Norm("norm", ("attention", "mlp", "mixer")),),
        attention=Attention(module="mixer"),
        mlps=(
            Mlp("mixer", _NEMOTRON_MLP),
            Mlp(
                "mixer.experts.*",
                _NEMOTRON_MLP,
                routers=("mixer.gate",),
                latent="mixer.fc1_latent_proj",
            ),
            Mlp("mixer.shared_experts", _NEMOTRON_MLP),
        ),
        mixers=(Mixer("mixer"), Mixer("mixer", ("fc1_latent_proj",), "fc2_latent_proj")),
        inner_norms=(("mixer.norm", ("mixer.out_proj",)),),
        root="backbone",
        embedding="embeddings",
        final_norm="norm_f",
        others=(
            rf"mixer\.{_MAMBA}",
            r"mixer\.gate\.e_score_correction_bias",
            r"mixer\.experts\.[0-9]+\.(up|down)_proj\.weight",
        ),
        head_dim=128,
    ),
    # Saved by transformers, layers of attention name the norm behind it as others the MLP's.
    "olmo_hybrid": replace(
        PLAIN,
        norms=(
            Norm("attention_layer_norm", ("mixer",), beside="mixer"),
            Norm("feedforward_layer_norm", ("mlp",), beside="mixer"),
            Norm("feedforward_layer_norm", (), optional=True, beside="attention"),
            Norm("post_attention_layernorm", (), optional=True, beside="attention"),
            Norm("post_feedforward_layernorm", (), beside="attention"),
        ),
        mixers=(
            Mixer(
                "linear_attn",
                ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj"),
                "o_proj",
            ),
        ),
        others=(
            *QK_NORMS,
            r"linear_attn\.(A_log|dt_bias|([qkv]_)?conv1d\.weight|o_norm\.weight)",
        ),
    ),
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_next": _QWEN3_NEXT,
    "recurrent_gemma": Family(
        norms=(Norm("temporal_pre_norm", _BLOCKS), Norm("channel_pre_norm", ("mlp",))),
        attention=Attention(module="temporal_block"),
        mlps=(Mlp("mlp_block"),),
        mixers=(Mixer("temporal_block", ("linear_x", "linear_y"), "linear_out"),),
        gain_offset=1.0,
        final_norm="final_norm",
        own_width=True,
        others=(r"temporal_block\.(conv_1d\.(weight|bias)|rg_lru\..*)",),
        head_dim=256,
        tied=True,
    ),
    "rwkv": Family(
        norms=(Norm("ln1", ("mixer",)), Norm("ln2", ("mlp",))),
        attention=None,
        mlps=(Mlp("feed_forward", ("key",), "value", routers=("feed_forward.receptance",)),),
        mixers=(Mixer("attention", ("key", "value", "receptance"), "output"),),
        norm_kind="layer",
        root="rwkv",
        layers="blocks",
        embedding="embeddings",
        final_norm="ln_out",
        head="head",
        others=(
            r"pre_ln\.(weight|bias)",
            r"(attention|feed_forward)\.time_(decay|first|mix_(key|value|receptance))",
        ),
        refusals=(
            *_NO_ATTENTION[:2],
            ("R1", "a norm behind the embedding scales the residual stream itself"),
            ("center", "a norm behind the embedding scales the residual stream itself"),
        ),
    ),
    "xlstm": Family(
        norms=(Norm("norm_mlstm", ("mixer",)), Norm("norm_ffn", ("mlp",))),
        attention=None,
        mlps=(Mlp("ffn", ("proj_up", "proj_up_gate"), "proj_down"),),
        mixers=(
            Mixer(
                "mlstm_layer",
                ("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact"),
            ),
        ),
        inner_norms=(("mlstm_layer.multihead_norm", ("mlstm_layer.out_proj",)),),
        root="backbone",
        layers="blocks",
        embedding="embeddings",
        final_norm="out_norm",
        own_width=True,
        refusals=_NO_ATTENTION[:2],
    ),
}
