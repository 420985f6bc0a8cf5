"""The Llama architecture: which tensors make up a model, and what checkpoints call them.

The keys are llama2.c's names: wq wk wv wo project queries, keys, values and the attention's output;
w1 is the gate, w2 goes down, w3 goes up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# Tensor -> its shape, in sizes of the model.
SHAPES = {
    "token_embedding": ("vocab_size", "dim"),
    "attention_norm": ("dim",),
    "wq": ("dim", "dim"),
    "wk": ("kv_dim", "dim"),
    "wv": ("kv_dim", "dim"),
    "wo": ("dim", "dim"),
    "ffn_norm": ("dim",),
    "w1": ("hidden_dim", "dim"),
    "w2": ("dim", "hidden_dim"),
    "w3": ("hidden_dim", "dim"),
    "norm": ("dim",),
    "classifier": ("vocab_size", "dim"),
}


@dataclass(frozen=True)
class Naming:
    """What one family of checkpoints calls a Llama's tensors.

    Attributes:
        config: the file that describes the model.
        layer: prefix of a layer's tensors, with {} for its number.
        once: tensors that the model has once.
        by_layer: tensors that every layer has, below the prefix.
        ignored: pattern of tensors that are no weights.
        split_halves: whether the rows of wq and wk lie in half-split rotary order, rather than with
            the two that rotate together side by side.
    """

    config: str
    layer: str
    once: Mapping[str, str]
    by_layer: Mapping[str, str]
    ignored: re.Pattern[str]
    split_halves: bool

    def name(self, tensor: str, layer: int | None) -> str:
        """What this family calls a tensor of a layer, or one of the whole model (None)."""
        if layer is None:
            return self.once[tensor]
        return self.layer.format(layer) + self.by_layer[tensor]


HUGGING_FACE = Naming(
    "config.json",
    "model.layers.{}.",
    {
        "token_embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "classifier": "lm_head.weight",
    },
    {
        "attention_norm": "input_layernorm.weight",
        "wq": "self_attn.q_proj.weight",
        "wk": "self_attn.k_proj.weight",
        "wv": "self_attn.v_proj.weight",
        "wo": "self_attn.o_proj.weight",
        "ffn_norm": "post_attention_layernorm.weight",
        "w1": "mlp.gate_proj.weight",
        "w2": "mlp.down_proj.weight",
        "w3": "mlp.up_proj.weight",
    },
    re.compile(r".*\.rotary_emb\.inv_freq"),
    split_halves=True,
)
META = Naming(
    "params.json",
    "layers.{}.",
    {
        "token_embedding": "tok_embeddings.weight",
        "norm": "norm.weight",
        "classifier": "output.weight",
    },
    {
        "attention_norm": "attention_norm.weight",
        "wq": "attention.wq.weight",
        "wk": "attention.wk.weight",
        "wv": "attention.wv.weight",
        "wo": "attention.wo.weight",
        "ffn_norm": "ffn_norm.weight",
        "w1": "feed_forward.w1.weight",
        "w2": "feed_forward.w2.weight",
        "w3": "feed_forward.w3.weight",
    },
    re.compile(r"rope\.freqs"),
    split_halves=False,
)


def naming_of(names: Collection[str]) -> Naming | None:
    """The family that a checkpoint's tensor names belong to; None if it is neither."""
    for naming in (HUGGING_FACE, META):
        if naming.once["token_embedding"] in names:
            return naming
    return None
