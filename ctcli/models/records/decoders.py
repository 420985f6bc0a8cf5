"""Dense decoders in Llama's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ctcli.models.family import Attention, Family, Mixer, Mlp, Norm

QK_NORMS = (r"self_attn\.[qk]_norm\.weight",)
PLAIN = Family()
POST_NORMS = (Norm("post_attention_layernorm", ()), Norm("post_feedforward_layernorm", ()))
MLA = replace(
    PLAIN,
    attention=Attention("latent"),
    refusals=(("R3", "MLA caches a latent that all heads share, not the keys that R3 rotates"),),
)
_QWEN3 = replace(PLAIN, others=QK_NORMS, head_dim=128)
_UNGATED = replace(PLAIN, mlps=(Mlp("mlp", inputs=("up_proj",)),))
_GATE_UP = (Mlp("mlp", inputs=("gate_up_proj",)),)
_GEMMA = replace(PLAIN, gain_offset=1.0, head_dim=256, tied=True)
_GEMMA2 = replace(
    _GEMMA,
    norms=(
        Norm("input_layernorm", ("attention",)),
        Norm("post_attention_layernorm", ()),
        Norm("pre_feedforward_layernorm", ("mlp",)),
        Norm("post_feedforward_layernorm", ()),
    ),
)
_PER_LAYER = (
    r"per_layer_(input_gate|projection)\.weight",
    r"post_per_layer_input_norm\.weight",
    *QK_NORMS,
)
_PER_LAYER_OUTER = (
    r"embed_tokens_per_layer\.weight",
    r"per_layer_(model_projection|projection_norm)\.weight",
)
_GEMMA4 = replace(
    _GEMMA2,
    attention=Attention(size_of="q_norm"),
    gain_offset=0.0,
    others=(*_PER_LAYER, "layer_scalar"),
    outer=_PER_LAYER_OUTER,
    own_width=True,
)
# One norm for both blocks, side by side.
COHERE = Family(
    norms=(Norm("input_layernorm", ("attention", "mlp")),),
    norm_kind="layer",
    others=QK_NORMS,
    tied=True,
)
_BITNET = replace(
    PLAIN,
    attention=Attention(normed=True),
    inner_norms=(
        ("self_attn.attn_sub_norm", ("self_attn.o_proj",)),
        ("mlp.ffn_sub_norm", ("mlp.down_proj",)),
    ),
)
_STABLELM = replace(
    PLAIN,
    norm_kind="layer",
    others=(r"self_attn\.[qk]_layernorm\.norms\.[0-9]+\.weight",),
)
_GLM4 = replace(
    PLAIN,
    norms=(*PLAIN.norms, Norm("post_self_attn_layernorm", ()), Norm("post_mlp_layernorm", ())),
    mlps=_GATE_UP,
    head_dim=128,
)

# Language models of models of several modalities, by the type of their text_config.
_MERGER = (r"(model\.)?visual\.merger\.mlp\.2",)
_DEEP_MERGERS = (r"(model\.)?visual\.(merger|deepstack_merger_list\.[0-9]+)\.linear_fc2",)
TEXT_ROWS: Mapping[str, Family] = {
    "glm4v_text": replace(_GLM4, head_dim=None),
    "qwen2_5_vl_text": replace(PLAIN, features=_MERGER),
    "qwen2_vl_text": replace(PLAIN, features=_MERGER),
    "qwen3_vl_text": replace(_QWEN3, features=_DEEP_MERGERS),
}
ROWS: Mapping[str, Family] = {
    "apertus": replace(
        _UNGATED,
        norms=(
            Norm("attention_layernorm", ("attention",)),
            Norm("feedforward_layernorm", ("mlp",)),
        ),
        others=(*QK_NORMS, r"mlp\.act_fn\.(alpha_n|alpha_p|beta|eps)"),
    ),
    "arcee": _UNGATED,
    "bitnet": _BITNET,
    "cohere": COHERE,
    "cohere2": COHERE,
    "cohere_compass_text": COHERE,
    "cwm": replace(PLAIN, head_dim=128),
    "diffllama": replace(
        PLAIN,
        attention=Attention(normed=True),
        others=(r"self_attn\.lambda_[qk][12]",),
    ),
    "doge": replace(
        PLAIN,
        others=(
            *QK_NORMS,
            r"(input|post_attention)_residual",
            r"self_attn\.(A|dt_proj\.weight)",
        ),
        refusals=(
            ("R1", "each layer scales the residual stream coordinate by coordinate"),
            ("R2", "the mask is made from the values"),
        ),
    ),
    "ernie4_5": replace(PLAIN, head_dim=128, tied=True),
    "exaone4": replace(PLAIN, norms=POST_NORMS, others=QK_NORMS),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, others=QK_NORMS),
    "gemma3n_text": replace(
        _GEMMA2,
        # Laurel adds what it reads to what it writes, the gain of this norm with it.
        norms=(Norm("input_layernorm", ()), *_GEMMA2.norms[1:]),
        mixers=(Mixer("laurel", ("linear_left",), "linear_right"),),
        gain_offset=0.0,
        inner_norms=(("altup.router_norm", ("altup.modality_router",)),),
        others=(
            *_PER_LAYER,
            r"altup\.(correct_output_scale|(correction|prediction)_coefs\.weight)",
            r"laurel\.post_laurel_norm\.weight",
        ),
        own_width=True,
        outer=(*_PER_LAYER_OUTER, r"altup_(unembed_)?projections\.[0-9]+\.weight"),
    ),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "glm": replace(PLAIN, mlps=_GATE_UP, head_dim=128),
    "glm4": _GLM4,
    "granite": PLAIN,
    "granite_swa": replace(PLAIN, others=(r"self_attn\.sinks",), tied=True),
    "helium": replace(PLAIN, head_dim=128),
    "hunyuan_v1_dense": replace(PLAIN, others=(r"self_attn\.(query|key)_layernorm\.weight",)),
    "hyperclovax": replace(
        PLAIN,
        norms=(
            *PLAIN.norms,
            Norm("post_norm1", (), optional=True),
            Norm("post_norm2", (), optional=True),
        ),
    ),
    "jais2": replace(_UNGATED, norm_kind="layer"),
    "llama": PLAIN,
    "minicpm3": replace(MLA, tied=True),
    "ministral": PLAIN,
    "ministral3": replace(PLAIN, head_dim=128),
    "mistral": PLAIN,
    "nanochat": replace(
        PLAIN, norms=(), mlps=(Mlp("mlp", inputs=("fc1",), output="fc2"),), final_norm=None
    ),
    "nemotron": replace(_UNGATED, norm_kind="layer", gain_offset=1.0),
    "olmo": replace(PLAIN, norms=(), norm_kind="layer", final_norm=None),
    "olmo2": replace(PLAIN, norms=POST_NORMS, others=QK_NORMS),
    "olmo3": replace(PLAIN, norms=POST_NORMS, others=QK_NORMS),
    "phi3": replace(PLAIN, attention=Attention("fused", inputs=("qkv_proj",)), mlps=_GATE_UP),
    "qwen2": PLAIN,
    "qwen3": _QWEN3,
    "seed_oss": replace(PLAIN, head_dim=128),
    "smollm3": replace(PLAIN, tied=True),
    "stablelm": replace(
        _STABLELM,
        variants=(
            (
                "use_parallel_residual",
                True,
                replace(_STABLELM, norms=(Norm("input_layernorm", ("attention", "mlp")),)),
            ),
        ),
    ),
    "starcoder2": replace(
        PLAIN,
        mlps=(Mlp("mlp", inputs=("c_fc",), output="c_proj"),),
        norm_kind="layer",
        tied=True,
        bias_switch="use_bias",
    ),
    "vaultgemma": replace(
        _GEMMA,
        norms=(
            Norm("input_layernorm", ("attention",)),
            Norm("pre_feedforward_layernorm", ("mlp",)),
        ),
    ),
    "youtu": replace(MLA, tied=True),
}
