"""Write a Llama-shaped bf16 checkpoint of random weights, cut at a size and in natural order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for size in ("hidden", "intermediate", "layers", "heads", "kv-heads", "vocabulary", "shard-mb"):
        parser.add_argument(f"--{size}", type=int, required=True)
    parser.add_argument("--untied", action="store_true", help="with an lm_head of its own")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    shards: list[list[str]] = [[]]
    shapes = dict(_shapes(options))
    room = limit = options.shard_mb * 1_000_000
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if nbytes > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= nbytes
    _write(options, shards, shapes)


def _shapes(options: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, kv = options.hidden, options.hidden // options.heads * options.kv_heads
    yield "model.embed_tokens.weight", (options.vocabulary, hidden)
    for layer in range(options.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "mlp.down_proj.weight", (hidden, options.intermediate)
        yield prefix + "mlp.gate_proj.weight", (options.intermediate, hidden)
        yield prefix + "mlp.up_proj.weight", (options.intermediate, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
        yield prefix + "self_attn.q_proj.weight", (hidden, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)
    if options.untied:
        yield "lm_head.weight", (options.vocabulary, hidden)


def _write(
    options: argparse.Namespace, shards: list[list[str]], shapes: dict[str, tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        tensors = {}
        for name in names:
            spread = torch.empty(shapes[name]).normal_(generator=generator).mul_(0.02)
            tensors[name] = (spread + 1 if len(shapes[name]) == 1 else spread).to(torch.bfloat16)
        shard = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, options.folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (options.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "vocab_size": options.vocabulary,
        "tie_word_embeddings": not options.untied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    (options.folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
