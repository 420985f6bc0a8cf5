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
    "embedding", "head", "router", "norm", "convolution", "tower", "rotation", "draft"
]
Kind = Literal[_Protected, "experts", "linear", "other"]
# What names of towers begin with, and what leads from them to the text.
_TOWERS = ("vision", "visual", "audio", "speech", "image")
_BRIDGES = ("multi_modal_projector", "mm_projector", "img_projection", "connector")
# Kind of module -> pattern of its whole name; the first that matches counts. None tells digits
# apart.
_KINDS: Mapping[_Protected, str] = {
    "embedding": r"(.*\.)?(embed_tokens|embed_in|embed_positions|wte|wpe|pos_embed|patch_embed.*"
    r"|((word|tok|position|token_type)_)?embeddings?)",
    "head": r"(.*\.)?(lm_head|embed_out)|output",
    "router": r".*\.(gate|(shared_)?expert_gate|gate\.wg)|(.*\.)?router(\..*)?",
    "norm": r"(.*\.)?[^.]*(norm|(^|\.)ln_?[a-z0-9]*)[^.]*",
    "convolution": r".*\bconv[0-9a-z_]*(\..*)?",
    "tower": rf"(.*\.)?({'|'.join(_TOWERS)})[a-z_]*\..*|(.*\.)?({'|'.join(_BRIDGES)})(\..*)?",
    "rotation": r".*\.[^.]+_(input|output|q_attn|k_cache)",
    "draft": r"(.*\.)?(mtp|nextn)[a-z_0-9]*(\..*)?",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
# What people are told of them.
REASONS: Mapping[Kind, str] = {
    "embedding": "embeddings",
    "head": "lm_head",
    "router": "routers and gates",
    "norm": "norms",
    "convolution": "convolutions",
    "tower": "vision and audio towers",
    "rotation": "online transforms",
    "draft": "multi-token prediction",
}
_DIGITS = re.compile("[0-9]+")
# Model types whose layers hold [in, out] weights in a class of their own instead of linears.
TRANSPOSED_LINEARS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_LAYER = re.compile(r"(?:.*\.)?layers\.([0-9]+)\.")


def kind_of(module: str, layers: int | None = None) -> _Protected | None:
    """What a module's name says that it is; None: nothing, so that it may be a linear.

    Args:
        module: its name.
        layers: how many layers the model has; those beyond predict further tokens.
    """
    parent, dot, leaf = module.rpartition(".")
    alike, layer = _numbers_of(parent)
    kind = _kind_of(alike + dot + leaf)
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
    text = "\n".join(names)
    if not any(word in text for word in (*_TOWERS, *_BRIDGES)):
        return frozenset()
    return frozenset(name for name in names if _is_tower(_DIGITS.sub("0", name)))


@lru_cache(maxsize=10_000)
def _is_tower(name: str) -> bool:
    return _PATTERNS["tower"].fullmatch(name) is not None
