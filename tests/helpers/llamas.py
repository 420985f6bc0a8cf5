"""Small Llamas of random weights, as checkpoints in Hugging Face's and in Meta's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.helpers.llama2c import Config, Floats, Model

SMALL = Config(64, 96, 2, 4, 2, 50, 16)
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1}
HF_NAMES = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
META_NAMES = {
    **{name: f"attention.{name}" for name in ("wq", "wk", "wv", "wo")},
    **{name: f"feed_forward.{name}" for name in ("w1", "w2", "w3")},
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}


def make_model(config: Config = SMALL, *, tied: bool = True, dtype: str = "bfloat16") -> Model:
    """Random weights that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(7)

    def weight(*shape: int) -> Floats:
        values = torch.randn(*shape, generator=generator) / 8
        return values.to(getattr(torch, dtype)).to(torch.float32).numpy()

    embedding = weight(config.vocab_size, config.dim)
    layers = {
        name: [weight(*shape) for _ in range(config.n_layers)]
        for name, shape in {
            **config.shapes(),
            "attention_norm": (config.dim,),
            "ffn_norm": (config.dim,),
        }.items()
    }
    classifier = None if tied else weight(config.vocab_size, config.dim)
    return Model(config, embedding, layers, weight(config.dim), classifier)


def hf_config(model: Model) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    config = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": model.classifier is None,
        "dtype": "bfloat16",
    }


def hf_tensors(model: Model) -> dict[str, Floats]:
    """Every tensor by its Hugging Face name, queries and keys in half-split rotary order."""
    found = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    for name, module in HF_NAMES.items():
        for i, tensor in enumerate(model.layers[name]):
            found[f"model.layers.{i}.{module}.weight"] = tensor
            if name in ("wq", "wk"):
                pairs = tensor.reshape(-1, model.config.head_size // 2, 2, model.config.dim)
                split = np.swapaxes(pairs, 1, 2).reshape(tensor.shape)
                found[f"model.layers.{i}.{module}.weight"] = split
    if model.classifier is not None:
        found["lm_head.weight"] = model.classifier
    return found


def meta_tensors(model: Model) -> dict[str, Floats]:
    """Every tensor by Meta's name."""
    found = {"tok_embeddings.weight": model.embedding, "norm.weight": model.norm}
    for name, module in META_NAMES.items():
        for i, tensor in enumerate(model.layers[name]):
            found[f"layers.{i}.{module}.weight"] = tensor
    if model.classifier is not None:
        found["output.weight"] = model.classifier
    return found


def save(
    folder: Path,
    tensors: Mapping[str, Floats],
    dtype: str = "bfloat16",
    shards: int = 2,
    **files: Mapping[str, Any] | bytes,
) -> Path:
    """A checkpoint in some shards; other files by their names, with __ for a dot."""
    folder.mkdir(parents=True)
    for i in range(shards):
        part = {
            name: torch.from_numpy(np.ascontiguousarray(tensors[name])).to(getattr(torch, dtype))
            for name in sorted(tensors)[i::shards]
        }
        save_file(part, folder / f"model-{i + 1:05d}-of-{shards:05d}.safetensors")
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


def save_hf(folder: Path, model: Model, stored: str = "bfloat16", **changes: Any) -> Path:
    """A Hugging Face checkpoint; changes go into config.json, None removes a key."""
    config = {k: v for k, v in {**hf_config(model), **changes}.items() if v is not None}
    return save(folder, hf_tensors(model), stored, config__json=config)
