"""A tiny Llama, and files that describe what to do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.checkpoints import array, write_checkpoint

WIDTH = 32
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float16",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // 2,
    "vocab_size": WIDTH,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "text_config": None,
    "quantization_config": None,
}
CONFIG_GROUPS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*norm"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "re:.*mlp.*"],
            "format": "pack-quantized",
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 16,
                "symmetric": True,
                "dynamic": False,
                "actorder": None,
                "block_structure": None,
                "scale_dtype": None,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    "transform_config": {"config_groups": {"R4": {"type": "hadamard", "apply": []}}},
    "sparsity_config": {},
}
TRANSFORM: dict[str, Any] = {
    "config_groups": {
        "R1": {
            "type": "random-hadamard",
            "randomize": False,
            "head_dim": 16,
            "precision": "torch.float64",
            "apply": [
                {
                    "targets": ["re:.*q_proj"],
                    "location": "weight_input",
                    "inverse": False,
                    "ignore": ["re:.*mlp.*"],
                },
                {"targets": ["Embedding"], "location": "weight_output", "inverse": True},
            ],
        },
        "R4": {
            "type": "hadamard",
            "apply": [{"targets": ["re:.*down_proj"], "location": "input", "ignore": "lm_head"}],
        },
    }
}
RECIPE = b"""ctcli = "0.1.0"

[source]
name = "source"
headers_sha256 = "00"

[[history]]
use = "fuse-norms"

[[steps]]
use = "rotate"
transform_type = "random-hadamard"
seed = 1
rotations = "R1,R2"

[[steps]]
use = "quantize"
scheme = ["W4A16"]
group_size = 16
symmetric = true
ignore = ["lm_head", "re:.*o_proj"]
max_shard_size = "1GB"
"""
MAPPING = b"""embedding = "model.embed_tokens"
attn = "re:.*self_attn$"
attn_q = "re:.*q_proj$"
attn_k = "re:.*k_proj$"
attn_v = "re:.*v_proj$"
attn_o = "re:.*o_proj$"
attn_head_dim = 16
mlp_in = ["re:.*gate_proj$", "re:.*up_proj$"]
mlp_out = ["re:.*down_proj$"]
lm_head = "lm_head"
norm_kind = "rms"
gain_offset = 0.0
ignore = []
[[norms]]
norm = "re:.*input_layernorm$"
linears = ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]
[[norms]]
norm = "re:.*post_attention_layernorm$"
linears = ["re:.*gate_proj$", "re:.*up_proj$"]
[[norms]]
norm = "model.norm"
linears = ["lm_head"]
"""
_LINEARS = [f"self_attn.{role}_proj" for role in "qkvo"]
_LINEARS += [f"mlp.{role}_proj" for role in ("gate", "up", "down")]
_NORMS = ("input_layernorm", "post_attention_layernorm")


def write(folder: Path) -> Path:
    """Write the Llama in two shards."""
    matrix, gain = array(WIDTH, WIDTH).astype("float16"), array(WIDTH).astype("float16")
    layer = {f"model.layers.0.{name}.weight": matrix for name in _LINEARS}
    layer |= {f"model.layers.0.{name}.weight": gain for name in _NORMS}
    rest = {"model.embed_tokens.weight": matrix, "lm_head.weight": matrix}
    return write_checkpoint(
        folder,
        {
            "model-00001-of-00002.safetensors": layer,
            "model-00002-of-00002.safetensors": {**rest, "model.norm.weight": gain},
        },
        others={"config.json": json.dumps(CONFIG)},
    )


def write_large(folder: Path, megabytes: int) -> Path:
    """Write a Llama of so many MB in shards of 20 MB."""
    width = 512
    count = max(1, round(megabytes * 1e6 / (7 * 2 * width * width)))
    matrix, gain = array(width, width).astype("float16"), abs(array(width)).astype("float16")
    tensors = {"model.embed_tokens.weight": matrix, "model.norm.weight": gain}
    for layer in range(count):
        start = f"model.layers.{layer}."
        tensors |= {f"{start}{name}.weight": matrix for name in _LINEARS}
        tensors |= {f"{start}{name}.weight": gain for name in _NORMS}
    names, size = [*tensors], max(1, len(tensors) // max(2, megabytes // 20))
    config = {
        **CONFIG,
        **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), width),
        "num_hidden_layers": count,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": width // 4,
        "tie_word_embeddings": True,
    }
    shards = [names[i : i + size] for i in range(0, len(names), size)]
    return write_checkpoint(
        folder,
        {
            f"model-{i:05d}-of-{len(shards):05d}.safetensors": {n: tensors[n] for n in shard}
            for i, shard in enumerate(shards, 1)
        },
        others={"config.json": json.dumps(config)},
    )
