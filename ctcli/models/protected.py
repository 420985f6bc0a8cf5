"""Modules that are left alone unless a user says otherwise, found by name.

Quantizing them costs more than it saves (routers, heads), is not what servers expect
(embeddings), or belongs to a part of the model that they run unquantized (towers, drafts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ctcli.models.config import size_of, text_config

# Kind of module -> pattern of its whole name.
_KINDS = {
    "embeddings": r"(.*\.)?(embed_tokens|embed_in|embed_positions|wte|wpe|pos_embed|patch_embed.*"
    r"|((word|tok|position|token_type)_)?embeddings?)",
    "lm_head": r"(.*\.)?(lm_head|embed_out)|output",
    "routers and gates": r".*\.(gate|(shared_)?expert_gate|gate\.wg)|(.*\.)?router(\..*)?",
    "norms": r"(.*\.)?[^.]*(norm|(^|\.)ln_?[a-z0-9]*)[^.]*",
    "convolutions": r".*\bconv[0-9a-z_]*(\..*)?",
    "vision and audio towers": r"(.*\.)?(vision|visual|audio|speech|image)[a-z_]*\..*"
    r"|(.*\.)?(multi_modal_projector|mm_projector|img_projection|connector)(\..*)?",
    "online transforms": r".*\.[^.]+_(input|output|q_attn|k_cache)",
    "multi-token prediction": r"(.*\.)?(mtp|nextn)[a-z_0-9]*(\..*)?",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
# Model types whose layers hold [in, out] weights in a class of their own instead of linears.
TRANSPOSED_LINEARS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_LAYER = re.compile(r"(?:.*\.)?layers\.([0-9]+)\..*")


def protected_kind(module: str, config: Mapping[str, Any]) -> str | None:
    """Why a module is left alone by default; None if it is not.

    Args:
        module: its name.
        config: config.json. Layers beyond `num_hidden_layers` predict further tokens.
    """
    for kind, pattern in _PATTERNS.items():
        if pattern.fullmatch(module):
            return kind
    layers = size_of(text_config(config), "num_hidden_layers")
    layer = _LAYER.fullmatch(module)
    if layer and layers and int(layer[1]) >= layers:
        return "multi-token prediction"
    return None


def is_embedding(module: str) -> bool:
    """Whether a module is an embedding rather than a linear."""
    return _PATTERNS["embeddings"].fullmatch(module) is not None


def is_head(module: str) -> bool:
    """Whether a module is the output head."""
    return _PATTERNS["lm_head"].fullmatch(module) is not None


def is_norm(module: str) -> bool:
    """Whether a module is a norm."""
    return _PATTERNS["norms"].fullmatch(module) is not None


def is_tower(name: str) -> bool:
    """Whether a tensor belongs to a vision or audio tower, or leads from one to the text."""
    return _PATTERNS["vision and audio towers"].fullmatch(name) is not None
