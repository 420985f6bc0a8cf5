"""Mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ctcli.models.family import Attention, Family, Mixer, Mlp, Norm, Refusal
from ctcli.models.records.decoders import COHERE, MLA, PLAIN, POST_NORMS, QK_NORMS

EXPERTS = Mlp("mlp.experts.*", routers=("mlp.gate",))
SHARED = Mlp("mlp.shared_experts")
_SHARED_EXPERT = Mlp("mlp.shared_expert", routers=("mlp.shared_expert_gate",))
_CORRECTION = r"mlp\.gate\.e_score_correction_bias"
_MIXTRAL_EXPERTS = Mlp(
    "block_sparse_moe.experts.*", ("w1", "w3"), "w2", routers=("block_sparse_moe.gate",)
)
_MIXTRAL = replace(PLAIN, mlps=(_MIXTRAL_EXPERTS,))
_DEEPSEEK = replace(MLA, mlps=(Mlp("mlp"), EXPERTS, SHARED), others=(_CORRECTION,))
_INDEXED = replace(
    _DEEPSEEK,
    attention=Attention("latent", extras=("indexer.wk", "indexer.weights_proj")),
    others=(_CORRECTION, r"self_attn\.indexer\.(k_norm\.(weight|bias)|wq_b\.weight)"),
    inner_norms=(("self_attn.q_a_layernorm", ("self_attn.q_b_proj", "self_attn.indexer.wq_b")),),
)
_GLM4_MOE = replace(PLAIN, mlps=(Mlp("mlp"), EXPERTS, SHARED), others=(*QK_NORMS, _CORRECTION))
_QWEN3_MOE = replace(PLAIN, mlps=(Mlp("mlp"), EXPERTS), others=QK_NORMS)
_ROUTED = Mlp("mlp.experts.*", routers=("mlp.router.gate",))
_NORM4 = (
    Norm("input_layernorm", ("attention",)),
    Norm("post_attention_layernorm", ()),
    Norm("pre_mlp_layernorm", ("mlp",)),
    Norm("post_mlp_layernorm", ()),
)
GATED: Refusal = ("R2", "a gate scales what the heads make, coordinate by coordinate")
_GRANITE_EXPERTS = Mlp(
    "block_sparse_moe",
    inputs=("input_linear.*",),
    output="output_linear.*",
    routers=("block_sparse_moe.router.layer",),
)
GRANITE_SHARED = Mlp("shared_mlp", inputs=("input_linear",), output="output_linear")
GRANITE_MOE = replace(
    PLAIN,
    mlps=(_GRANITE_EXPERTS,),
    stacked=(r"block_sparse_moe\.(input|output)_linear",),
)

ROWS: Mapping[str, Family] = {
    "afmoe": replace(
        PLAIN,
        norms=_NORM4,
        attention=Attention(extras=("gate_proj",)),
        mlps=(Mlp("mlp"), _ROUTED, SHARED),
        others=(*QK_NORMS, r"mlp\.expert_bias"),
        head_dim=128,
        refusals=(GATED,),
    ),
    "aria_text": replace(
        PLAIN,
        mlps=(
            Mlp("mlp.experts", ("fc1.*",), "fc2.*", routers=("mlp.router",)),
            SHARED,
        ),
        stacked=(r"mlp\.experts\.fc[12]",),
        transposed=(r"mlp\.experts\..*",),
    ),
    "axk1": replace(_DEEPSEEK, norms=(*PLAIN.norms, Norm("post_mlp_layernorm", (), optional=True))),
    "cohere2_moe": replace(COHERE, mlps=(Mlp("mlp"), EXPERTS, SHARED), head_dim=128),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _INDEXED,
    "dots1": _GLM4_MOE,
    "ernie4_5_moe": replace(
        PLAIN,
        mlps=(Mlp("mlp"), EXPERTS, SHARED),
        others=(r"mlp\.moe_statics\.e_score_correction_bias",),
        tied=True,
    ),
    "exaone_moe": replace(_GLM4_MOE, others=(*QK_NORMS, r"mlp\.e_score_correction_bias")),
    "flex_olmo": replace(PLAIN, norms=POST_NORMS, mlps=(EXPERTS,), others=QK_NORMS),
    "glm4_moe": _GLM4_MOE,
    "glm4_moe_lite": _DEEPSEEK,
    "glm_moe_dsa": _INDEXED,
    "gpt_oss": replace(
        PLAIN,
        mlps=(Mlp("mlp.experts", ("gate_up_proj.*",), "down_proj.*", routers=("mlp.router",)),),
        others=(r"self_attn\.sinks",),
        stacked=(r"mlp\.experts\.(gate_up|down)_proj",),
        transposed=(r"mlp\.experts\..*",),
        head_dim=64,
    ),
    "granitemoe": GRANITE_MOE,
    "granitemoe_swa": replace(
        PLAIN,
        mlps=(
            Mlp(
                "block_sparse_moe.experts",
                ("gate_up_proj.*",),
                "down_proj.*",
                routers=("block_sparse_moe.router",),
            ),
            GRANITE_SHARED,
        ),
        others=(r"self_attn\.sinks",),
        stacked=(r"block_sparse_moe\.experts\.(gate_up|down)_proj",),
    ),
    "granitemoeshared": replace(GRANITE_MOE, mlps=(_GRANITE_EXPERTS, GRANITE_SHARED)),
    "hunyuan_v1_moe": replace(
        PLAIN,
        mlps=(
            Mlp("mlp"),
            Mlp("mlp.experts.*", routers=("mlp.gate.wg",)),
            Mlp("mlp.shared_mlp"),
        ),
        others=(r"self_attn\.(query|key)_layernorm\.weight",),
    ),
    "hy_v3": replace(
        PLAIN,
        mlps=(Mlp("mlp"), _ROUTED, Mlp("mlp.shared_mlp")),
        others=(*QK_NORMS, r"mlp\.expert_bias"),
        head_dim=128,
    ),
    # Each block adds its bias once, whichever of its experts are taken.
    "jetmoe": replace(
        PLAIN,
        attention=Attention(
            "experts",
            output="experts.output_linear.*",
            module="self_attention",
            inputs=("experts.input_linear.*", "kv_proj"),
            extras=("experts.router.layer",),
        ),
        mlps=(Mlp("mlp", ("input_linear.*",), "output_linear.*", routers=("mlp.router.layer",)),),
        stacked=(r"(self_attention\.experts|mlp)\.(input|output)_linear",),
        biases=(
            ("self_attention.experts.bias", "self_attention.experts.output_linear.0"),
            ("mlp.bias", "mlp.output_linear.0"),
        ),
        tied=True,
    ),
    "laguna": replace(
        PLAIN,
        attention=Attention(extras=("g_proj",), size_of="q_norm"),
        mlps=(Mlp("mlp"), EXPERTS, Mlp("mlp.shared_expert")),
        others=(*QK_NORMS, r"mlp\.experts\.e_score_correction_bias"),
        head_dim=128,
    ),
    "llama4_text": replace(
        PLAIN,
        mlps=(
            Mlp("feed_forward"),
            Mlp(
                "feed_forward.experts",
                ("gate_up_proj.*",),
                "down_proj.*",
                routers=("feed_forward.router",),
            ),
            Mlp("feed_forward.experts.*", routers=("feed_forward.router",)),
            Mlp("feed_forward.shared_expert"),
        ),
        stacked=(r"feed_forward\.experts\.(gate_up|down)_proj",),
        own_width=True,
        transposed=(r"feed_forward\.experts\.(gate_up|down)_proj\..*",),
        head_dim=128,
    ),
    "longcat_flash": replace(
        MLA,
        norms=(
            Norm("input_layernorm.0", ("self_attn.0",)),
            Norm("post_attention_layernorm.0", ("mlps.0", "mlp.experts", "mlp.router.classifier")),
            Norm("input_layernorm.1", ("self_attn.1",)),
            Norm("post_attention_layernorm.1", ("mlps.1",)),
        ),
        attention=Attention("latent", module="self_attn.0"),
        second=Attention("latent", module="self_attn.1"),
        mlps=(
            Mlp("mlps.0"),
            Mlp("mlps.1"),
            Mlp("mlp.experts.*", routers=("mlp.router.classifier",)),
        ),
        count="num_layers",
        others=(r"mlp\.router\.e_score_correction_bias",),
    ),
    "mellum": replace(_QWEN3_MOE, head_dim=128),
    "mimo_v2_flash": replace(
        PLAIN,
        attention=Attention(value_size="v_head_dim"),
        mlps=(Mlp("mlp"), EXPERTS),
        others=(_CORRECTION, r"self_attn\.(sinks|attention_sink_bias)"),
        head_dim=192,
    ),
    "minimax": replace(
        _MIXTRAL,
        norms=(Norm("input_layernorm", ()), Norm("post_attention_layernorm", ())),
        mixers=(Mixer("self_attn", ("qkv_proj", "output_gate")),),
        others=(
            r"self_attn\.norm\.weight",
            r"self_attn\.(slope_rate|(diagonal|query|key)_decay)",
        ),
    ),
    "minimax_m2": replace(
        _MIXTRAL,
        others=(*QK_NORMS, r"block_sparse_moe\.e_score_correction_bias"),
        head_dim=128,
    ),
    "minimax_m3_vl_text": replace(
        PLAIN,
        own_width=True,
        gain_offset=1.0,
        mlps=(
            Mlp("mlp", inputs=("gate_up_proj",)),
            Mlp("mlp.experts", ("gate_up_proj.*",), "down_proj.*", routers=("mlp.gate",)),
            Mlp("mlp.shared_experts", inputs=("gate_up_proj",)),
        ),
        others=(*QK_NORMS, _CORRECTION),
        stacked=(r"mlp\.experts\.(gate_up|down)_proj",),
        head_dim=128,
    ),
    "mixtral": _MIXTRAL,
    "olmoe": _QWEN3_MOE,
    "phimoe": replace(_MIXTRAL, norm_kind="layer", head_bias=True),
    "qwen2_moe": replace(PLAIN, mlps=(Mlp("mlp"), EXPERTS, _SHARED_EXPERT)),
    "qwen3_moe": _QWEN3_MOE,
    "solar_open": replace(
        PLAIN,
        mlps=(Mlp("mlp"), EXPERTS, SHARED),
        others=(*QK_NORMS, _CORRECTION),
        head_dim=128,
    ),
}
