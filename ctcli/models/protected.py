"""Modules that are left alone unless a user says otherwise, found by name.

Quantizing them costs more than it saves (routers, heads), is not what servers expect
(embeddings), or belongs to a part of the model that they run unquantized (towers, drafts).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Literal

from ctcli.models.config import size_of, text_config

_Protected = Literal[
    "embedding",
    "head",
    "classifier",
    "router",
    "gate",
    "norm",
    "side",
    "convolution",
    "tower",
    "rotation",
    "draft",
]
Kind = Literal[_Protected, "whole", "experts", "linear", "other"]
# Kind of module -> pattern of its whole name; the first that matches counts. None tells digits
# apart: a number is 0. In a name's last component, where mlp0 and mlp1 are told apart, 2 stands
# for all others.
_KINDS: Mapping[_Protected, str] = {
    "embedding": r"(.*\.)?((vision_)?embed_tokens(_per_layer)?|embed_in|embed_positions|wte|wpe|vte"
    r"|pos_embed|patch_embed.*|(tokens|positions)_embed|relative_attention_bias"
    r"|((word|tok|position|token_type)_)?embeddings?)|transformer\.w|(model\.)?shared",
    "head": r"(.*\.)?(lm_head(\.dense)?|embed_out|output_layer|output_projection)"
    r"|(.*\.)?transformer\.ff_out|((language_model|llm)\.)?output|head(\.dense)?|decoder|proj_out",
    "classifier": r"(.*\.)?(score|classifier|qa_outputs|pooler|(v|value|reward)_head"
    r"|(sparse|colbert)_linear|custom_text_proj)(\..*)?|out_proj",
    "router": r".*\.(gate|(shared_)?expert_gate|gate\.wg)|(.*\.)?router(\..*)?",
    # How much a state forgets and takes in, or a token counts: a few rows that servers keep whole.
    "gate": r".*\.(in_proj_(a|b|ba)|[a-z_]*_res_proj)|.*\.indexer\.(scorer\.)?(weights_proj|wk)"
    r"|.*\.compressor\.(indexer\.)?(wkv|wgate|kv_proj|gate_proj)",
    "norm": r"(.*\.)?[^.]*(norm|(^|\.)ln_?[a-z0-9]*)[^.]*|.*\.ada_rms_norm[a-z_]*\..*",
    "side": r"(.*\.)?(altup|laurel|self_conditioning)[a-z_]*(\..*)?|(.*\.)?per_layer_[a-z_]+",
    "convolution": r"(.*\.)?([a-z0-9_]*_)?s?conv[0-9a-z_]*(\.[0-9]+)?",
    "tower": r"(.*\.)?((vision|visual|vit|audio|speech|sound|image|sam|whisper)[a-z0-9_]*|[av]pm"
    r"|continuous_audio_tower|qwen0_model)\..*"
    r"|(.*\.)?[a-z0-9_]*(projector|perceiver|resampler|merger|connector|abstractor)[a-z_]*"
    r"(\..*)?"
    r"|(.*\.)?[qQ][fF]ormer[a-z_]*(\..*)?"
    r"|(.*\.)?(img|image|language|vision|visual|audio|speech|sound|text|modality)_proj[a-z]*"
    r"(\..*)?"
    r"|(.*\.)?(embedding_projection|img_projection|aligner(\..*)?)"
    r"|(model\.)?(mlp(0|1|_AR)|linear_proj|[a-z_]*adapt[eo]r)(\..*)?"
    r"|encoder\.(input_linear|out(_mid)?|layers\.0\.(attn\.to_(q|kv|out)|ff[12]\..*))",
    "rotation": r".*\.[^.]+_(input|output|q_attn|k_cache)",
    "draft": r"(.*\.)?(mtp|nextn|medusa)[a-z_0-9]*(\..*)?|.*\.eh_proj",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
# What people are told of them.
REASONS: Mapping[Kind, str] = {
    "embedding": "embeddings",
    "head": "lm_head",
    "classifier": "classifiers and value heads",
    "router": "routers and gates",
    "gate": "gates, indexers and compressors",
    "norm": "norms",
    "side": "altup, laurel, per-layer inputs and self-conditioning",
    "convolution": "convolutions",
    "tower": "vision and audio towers",
    "rotation": "online transforms",
    "draft": "multi-token prediction",
    "whole": "linears that servers keep whole",
}
_DIGITS = re.compile("[0-9]+")
_OTHERS = re.compile("[0-9]{2,}|[2-9]")
_LAYER = re.compile(r"(?:.*\.)?layers\.([0-9]+)\.")


def kind_of(module: str, layers: int | None = None) -> _Protected | None:
    """What a module's name says that it is; None: nothing, so that it may be a linear.

    Args:
        module: its name.
        layers: how many layers the model has; those beyond predict further tokens.
    """
    parent, dot, leaf = module.rpartition(".")
    alike, layer = _numbers_of(parent)
    kind = _kind_of(alike + dot + _OTHERS.sub("2", leaf))
    return "draft" if kind is None and layers and layer >= layers else kind


@lru_cache(maxsize=10_000)
def _numbers_of(parent: str) -> tuple[str, int]:
    """A module's name without its numbers, and the number of its layer; -1: it is in none.

    Names are taken apart once for all modules inside another.
    """
    layer = _LAYER.match(f"{parent}.")
    return _DIGITS.sub("0", parent), int(layer[1]) if layer else -1


@lru_cache(maxsize=10_000)
def _kind_of(module: str) -> _Protected | None:
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(module)), None)


def layers_of(config: Mapping[str, Any]) -> int | None:
    """How many layers config.json gives the language model, if it does."""
    return size_of(text_config(config), "num_hidden_layers")


def is_embedding(module: str) -> bool:
    """Whether a module is an embedding rather than a linear."""
    return kind_of(module) == "embedding"


def is_head(module: str) -> bool:
    """Whether a module is the output head."""
    return kind_of(module) == "head"


def towers(names: Collection[str]) -> frozenset[str]:
    """The tensors that belong to a vision or audio tower, or lead from one to the text."""
    return frozenset(name for name in names if _is_tower(_DIGITS.sub("0", name)))


@lru_cache(maxsize=10_000)
def _is_tower(name: str) -> bool:
    return _PATTERNS["tower"].fullmatch(name) is not None
