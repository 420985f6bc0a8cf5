"""Families of language models: one record each, in the names of their checkpoints.

Module names are relative to a layer, unless a field says otherwise. Read off the models'
definitions in transformers; a test proves each record by arithmetic.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ctcli.errors import CtcliError
from ctcli.models.architecture import NormKind, Operation
from ctcli.models.config import classes, text_config

Block = Literal["attention", "mlp"]


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of a layer, and the blocks that read it; none: it normalises what a block writes."""

    module: str
    feeds: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """Where queries, keys and values come from.

    Attributes:
        layout: `separate`: q, k and v linears. `fused`: one linear, all q rows above all k rows
            above all v rows. `latent`: multi-head latent attention (DeepSeek-V2,
            arXiv:2405.04434): keys without position and values of a head side by side in
            `kv_b_proj`, behind a norm of their own; queries likewise, or straight from `q_proj`.
        output: the output linear's name.
    """

    layout: Literal["separate", "fused", "latent"] = "separate"
    output: str = "o_proj"


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP that layers may have; `*` in its module stands for the number of an expert."""

    module: str
    inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    output: str = "down_proj"
    routers: tuple[str, ...] = ()  # whatever reads the stream to weigh its output


@dataclass(frozen=True)
class Family:
    """What models of a family have in common.

    Attributes:
        norms: norms of a layer.
        attention: how attention is laid out, below `self_attn`.
        mlps: the MLPs a layer may have.
        norm_kind: RMSNorm or LayerNorm.
        gain_offset: what the model adds to a stored gain.
        base: prefix of layers, embeddings and final norm, below the language model.
        positions: learned embedding of positions, added to the stream.
        final_norm: the norm before the head, below `base`.
        others: expressions for tensors of a layer that have nothing to do with the stream.
        head_dim: where config.json has none; None: hidden_size / num_attention_heads.
        tied: whether the head is tied where config.json does not say.
        bias_switch: config key that gives biases to all linears of the layers.
        affine_switch: config key that takes gains and biases from the norms if it is false.
        refusals: operations that are not exact, beyond what follows from the rest.
        variants: config key and value, and the record that holds instead of this one.
    """

    norms: tuple[Norm, ...] = (
        Norm("input_layernorm", ("attention",)),
        Norm("post_attention_layernorm", ("mlp",)),
    )
    attention: Attention = Attention()
    mlps: tuple[Mlp, ...] = (Mlp("mlp"),)
    norm_kind: NormKind = "rms"
    gain_offset: float = 0.0
    base: str = ""
    positions: str | None = None
    final_norm: str | None = "norm"
    others: tuple[str, ...] = ()
    head_dim: int | None = None
    tied: bool = False
    bias_switch: str | None = None
    affine_switch: str | None = None
    refusals: tuple[tuple[Operation, str], ...] = ()
    variants: tuple[tuple[str, Any, Family], ...] = ()


_QK_NORMS = (r"self_attn\.[qk]_norm\.weight",)
_PLAIN = Family()
_QWEN3 = replace(_PLAIN, others=_QK_NORMS, head_dim=128)
_EXPERTS = Mlp("mlp.experts.*", routers=("mlp.gate",))
_GEMMA2 = Family(
    norms=(
        Norm("input_layernorm", ("attention",)),
        Norm("post_attention_layernorm", ()),
        Norm("pre_feedforward_layernorm", ("mlp",)),
        Norm("post_feedforward_layernorm", ()),
    ),
    gain_offset=1.0,
    head_dim=256,
    tied=True,
)
_DEEPSEEK = Family(
    attention=Attention("latent"),
    mlps=(Mlp("mlp"), _EXPERTS, Mlp("mlp.shared_experts")),
    others=(r"mlp\.gate\.e_score_correction_bias",),
    refusals=(("R3", "MLA caches a latent that all heads share, not the keys that R3 rotates"),),
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
_OPT_POST_NORM = replace(
    _OPT,
    norms=(Norm("self_attn_layer_norm", ()), Norm("final_layer_norm", ())),
    final_norm=None,
    refusals=(("fuse-norms", "every norm is behind a block, in the stream itself"),),
)
_OPT_NO_FINAL_NORM = replace(
    _OPT,
    final_norm=None,
    refusals=(("center", "the head reads the stream without a norm that subtracts the mean"),),
)

# By model type, which is that of `text_config` in models of several modalities.
FAMILIES: Mapping[str, Family] = {
    "cohere": Family(
        # One norm for both blocks, side by side.
        norms=(Norm("input_layernorm", ("attention", "mlp")),),
        norm_kind="layer",
        others=_QK_NORMS,
        tied=True,
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gemma": replace(_PLAIN, gain_offset=1.0, head_dim=256, tied=True),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, others=_QK_NORMS),
    "granite": _PLAIN,
    "llama": _PLAIN,
    "ministral": _PLAIN,
    "ministral3": replace(_PLAIN, head_dim=128),
    "mistral": _PLAIN,
    "mixtral": replace(
        _PLAIN,
        mlps=(
            Mlp(
                "block_sparse_moe.experts.*", ("w1", "w3"), "w2", routers=("block_sparse_moe.gate",)
            ),
        ),
    ),
    "olmo2": Family(
        norms=(Norm("post_attention_layernorm", ()), Norm("post_feedforward_layernorm", ())),
        others=_QK_NORMS,
    ),
    "opt": replace(
        _OPT,
        variants=(
            ("do_layer_norm_before", False, _OPT_POST_NORM),
            ("_remove_final_layer_norm", True, _OPT_NO_FINAL_NORM),
        ),
    ),
    "phi3": replace(
        _PLAIN,
        attention=Attention("fused"),
        mlps=(Mlp("mlp", inputs=("gate_up_proj",)),),
    ),
    "qwen2": _PLAIN,
    "qwen2_moe": replace(
        _PLAIN,
        mlps=(Mlp("mlp"), _EXPERTS, Mlp("mlp.shared_expert", routers=("mlp.shared_expert_gate",))),
    ),
    "qwen3": _QWEN3,
    "qwen3_moe": replace(_QWEN3, mlps=(Mlp("mlp"), _EXPERTS), head_dim=None),
    "smollm3": replace(_PLAIN, tied=True),
    "starcoder2": replace(
        _PLAIN,
        mlps=(Mlp("mlp", inputs=("c_fc",), output="c_proj"),),
        norm_kind="layer",
        tied=True,
        bias_switch="use_bias",
    ),
}


def model_type(config: Mapping[str, Any]) -> str:
    """The language model's type: by its own key, or by the class that config.json names."""
    text = text_config(config)
    if named := text.get("model_type"):
        return str(named)
    name = (*classes(config), "unknown")[0].removesuffix("ForCausalLM")
    known = {found.replace("_", ""): found for found in FAMILIES}
    return known.get(name.lower(), name)


def family_of(config: Mapping[str, Any]) -> Family:
    """The declaration that holds for a config.json.

    Raises:
        CtcliError: there is none.
    """
    name = model_type(config)
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.5)
        like = f" (near it: {', '.join(near)})" if near else ""
        raise CtcliError(
            f"config.json: model type {name!r} is not one whose architecture is known{like}.",
            f"Known are {', '.join(FAMILIES)}; for others, describe the model in a file and "
            "give --mapping FILE.",
        )
    family = FAMILIES[name]
    text = text_config(config)
    return next((v for key, value, v in family.variants if text.get(key) == value), family)
