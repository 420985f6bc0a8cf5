"""Decoders from before Llama: LayerNorms, fused queries, keys and values, names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ctcli.models.family import Attention, Family, Mlp, Norm, Refusal

_EMBEDDING_NORM = "a norm behind the embedding scales the residual stream itself"
_SINUSOIDS = "computed positions are added to the residual stream"
_BLOCKS = (Norm("ln_1", ("attention",)), Norm("ln_2", ("mlp",)))
_PARALLEL = (Norm("ln_1", ("attention", "mlp")),)
_GPT2 = Family(
    norms=_BLOCKS,
    attention=Attention("fused", "c_proj", "attn", ("c_attn",)),
    mlps=(Mlp("mlp", ("c_fc",), "c_proj"),),
    norm_kind="layer",
    root="transformer",
    layers="h",
    embedding="wte",
    positions="wpe",
    final_norm="ln_f",
    transposed=(r"(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)",),
    tied=True,
)
_BIGCODE = replace(_GPT2, transposed=())
_GPTJ = replace(
    _GPT2,
    norms=_PARALLEL,
    attention=Attention(output="out_proj", module="attn"),
    mlps=(Mlp("mlp", ("fc_in",), "fc_out"),),
    positions=None,
    transposed=(),
    head_bias=True,
    tied=False,
)
_NEOX = Family(
    attention=Attention("heads", "dense", "attention", ("query_key_value",)),
    mlps=(Mlp("mlp", ("dense_h_to_4h",), "dense_4h_to_h"),),
    norm_kind="layer",
    root="gpt_neox",
    embedding="embed_in",
    final_norm="final_layer_norm",
    head="embed_out",
)
_BLOOM = replace(
    _NEOX,
    attention=Attention("heads", "dense", "self_attention", ("query_key_value",)),
    root="transformer",
    layers="h",
    embedding="word_embeddings",
    final_norm="ln_f",
    head="lm_head",
    outer=(r"word_embeddings_layernorm\.(weight|bias)",),
    tied=True,
    refusals=(("R1", _EMBEDDING_NORM), ("center", _EMBEDDING_NORM)),
)
_BLOOM_NORMED_RESIDUAL = replace(
    _BLOOM,
    norms=(Norm("input_layernorm", ()), Norm("post_attention_layernorm", ())),
)
_FALCON = replace(
    _BLOOM,
    norms=(Norm("input_layernorm", ("attention", "mlp")),),
    attention=Attention("fused", "dense", "self_attention", ("query_key_value",)),
    outer=(),
    refusals=(),
)
_FALCON_40B = replace(
    _FALCON,
    norms=(Norm("ln_attn", ("attention",)), Norm("ln_mlp", ("mlp",))),
    attention=Attention("groups", "dense", "self_attention", ("query_key_value",)),
)
_FALCON_RW = replace(
    _FALCON,
    norms=_NEOX.norms,
    attention=_BLOOM.attention,
)
_OPT = Family(
    norms=(Norm("self_attn_layer_norm", ("attention",)), Norm("final_layer_norm", ("mlp",))),
    attention=Attention(output="out_proj"),
    mlps=(Mlp("", inputs=("fc1",), output="fc2"),),
    norm_kind="layer",
    base="decoder.",
    positions="embed_positions",
    final_norm="final_layer_norm",
    tied=True,
    bias_switch="enable_bias",
    affine_switch="layer_norm_elementwise_affine",
)
_BEHIND: Refusal = ("fuse-norms", "every norm is behind a block, in the stream itself")
_OPT_POST_NORM = replace(
    _OPT,
    norms=(Norm("self_attn_layer_norm", ()), Norm("final_layer_norm", ())),
    final_norm=None,
    refusals=(_BEHIND,),
)
_OPT_NO_FINAL_NORM = replace(
    _OPT,
    final_norm=None,
    refusals=(("center", "the head reads the stream without a norm that subtracts the mean"),),
)

ROWS: Mapping[str, Family] = {
    "biogpt": replace(
        _OPT,
        root="biogpt",
        base="",
        final_norm="layer_norm",
        head="output_projection",
        bias_switch=None,
        affine_switch=None,
    ),
    "bloom": replace(
        _BLOOM,
        variants=(("apply_residual_connection_post_layernorm", True, _BLOOM_NORMED_RESIDUAL),),
    ),
    "codegen": replace(_GPTJ, attention=Attention("quarters", "out_proj", "attn", ("qkv_proj",))),
    "ctrl": replace(
        _GPT2,
        norms=(Norm("layernorm1", ("attention",)), Norm("layernorm2", ("mlp",))),
        attention=Attention(
            output="dense", module="multi_head_attention", inputs=("Wq", "Wk", "Wv")
        ),
        mlps=(Mlp("ffn", ("0",), "2"),),
        embedding="w",
        positions=None,
        final_norm="layernorm",
        head_bias=True,
        transposed=(),
        refusals=(("R1", _SINUSOIDS), ("center", _SINUSOIDS)),
    ),
    "dbrx": Family(
        norms=(
            Norm("norm_attn_norm.norm_1", ("attention",)),
            Norm("norm_attn_norm.norm_2", ("mlp",)),
        ),
        attention=Attention("fused", "out_proj", "norm_attn_norm.attn", ("Wqkv",)),
        mlps=(Mlp("ffn.experts.mlp", ("w1", "v1"), "w2", routers=("ffn.router.layer",)),),
        norm_kind="layer",
        root="transformer",
        layers="blocks",
        embedding="wte",
        final_norm="norm_f",
        stacked=(r"ffn\.experts\.mlp\.(w1|v1|w2)",),
        transposed=(r"ffn\.experts\.mlp\.w2",),
        refusals=(("R2", "clip_qkv cuts queries, keys and values off at a bound, one by one"),),
    ),
    "falcon": replace(
        _FALCON,
        variants=(
            (
                "new_decoder_architecture",
                True,
                replace(
                    _FALCON_40B,
                    variants=(
                        (
                            "num_ln_in_parallel_attn",
                            1,
                            replace(_FALCON_40B, norms=_FALCON.norms),
                        ),
                    ),
                ),
            ),
            (
                "multi_query",
                False,
                replace(
                    _FALCON_RW,
                    variants=(("parallel_attn", True, replace(_FALCON_RW, norms=_FALCON.norms)),),
                ),
            ),
            ("parallel_attn", False, replace(_FALCON, norms=_NEOX.norms)),
        ),
    ),
    "gpt-sw3": _GPT2,
    "gpt2": _GPT2,
    "gpt_bigcode": replace(
        _BIGCODE,
        variants=(
            (
                "multi_query",
                False,
                replace(_BIGCODE, attention=Attention("heads", "c_proj", "attn", ("c_attn",))),
            ),
        ),
    ),
    "gpt_neo": replace(
        _GPT2,
        attention=Attention(output="out_proj", module="attn.attention"),
        transposed=(),
    ),
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": replace(
        _NEOX,
        root="gpt_neox_japanese",
        biases=(("attention.dense_bias", "attention.dense"),),
        tied=True,
    ),
    "gptj": _GPTJ,
    "mpt": replace(
        _GPT2,
        norms=(Norm("norm_1", ("attention",)), Norm("norm_2", ("mlp",))),
        attention=Attention("fused", "out_proj", "attn", ("Wqkv",)),
        mlps=(Mlp("ffn", ("up_proj",), "down_proj"),),
        layers="blocks",
        positions=None,
        final_norm="norm_f",
        transposed=(),
    ),
    "openai-gpt": replace(
        _GPT2,
        norms=(Norm("ln_1", ()), Norm("ln_2", ())),
        embedding="tokens_embed",
        positions="positions_embed",
        final_norm=None,
        refusals=(_BEHIND,),
    ),
    "opt": replace(
        _OPT,
        variants=(
            ("do_layer_norm_before", False, _OPT_POST_NORM),
            ("_remove_final_layer_norm", True, _OPT_NO_FINAL_NORM),
        ),
    ),
    "persimmon": replace(
        _NEOX,
        attention=Attention("heads", "dense", "self_attn", ("query_key_value",)),
        root="model",
        embedding="embed_tokens",
        final_norm="final_layernorm",
        head="lm_head",
        others=(r"self_attn\.[qk]_layernorm\.(weight|bias)",),
    ),
    "phi": replace(
        _GPTJ,
        norms=(Norm("input_layernorm", ("attention", "mlp")),),
        attention=Attention(output="dense"),
        mlps=(Mlp("mlp", ("fc1",), "fc2"),),
        root="model",
        layers="layers",
        embedding="embed_tokens",
        final_norm="final_layernorm",
        others=(r"self_attn\.[qk]_layernorm\.(weight|bias)",),
    ),
    "xglm": replace(
        _OPT,
        base="",
        positions=None,
        final_norm="layer_norm",
        bias_switch=None,
        affine_switch=None,
        refusals=(("R1", _SINUSOIDS), ("center", _SINUSOIDS)),
    ),
}
