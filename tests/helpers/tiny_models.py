"""Tiny random models of every family, made and run by transformers.

Gains and biases are far from one and zero, and there are fewer key heads than query heads where
the family allows it: a rewrite that forgets one of them changes the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from ctcli.models.architecture import Architecture
from ctcli.models.resolve import resolve

VOCABULARY = 128
# Rounding in float32 over two layers stays below 1e-5 of the largest logit, and whatever is left
# out of a rotation or fused twice moves them by more than 1e-2.
EXACT = 1e-4
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DEEPSEEK = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_OPT = {"ffn_dim": 96}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Name of a model here -> model type, and config keys beyond what all have.
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cohere": ("cohere", {"use_qk_norm": True, "attention_bias": True}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": 24, "attention_bias": True}),
    "deepseek_v2_lite": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "q_lora_rank": 24}),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma2": ("gemma2", {"head_dim": 24}),
    "gemma3": ("gemma3", {}),
    "gemma3_text": ("gemma3_text", {"head_dim": 24}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "ministral": ("ministral", {"head_dim": 24}),
    "ministral3": (
        "ministral3",
        {
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 4,
            },
        },
    ),
    "mistral": ("mistral", {"head_dim": 24}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("olmo2", {}),
    "opt": ("opt", _OPT),
    "opt_unbiased": ("opt", {**_OPT, "enable_bias": False}),
    "opt_plain_norms": ("opt", {**_OPT, "layer_norm_elementwise_affine": False}),
    "opt_projected": ("opt", {**_OPT, "word_embed_proj_dim": 40}),
    "opt_post_norm": (
        "opt",
        {**_OPT, "word_embed_proj_dim": 40, "do_layer_norm_before": False},
    ),
    "opt_no_final_norm": ("opt", {**_OPT, "_remove_final_layer_norm": True}),
    "phi3": ("phi3", {}),
    "qwen2": ("qwen2", {}),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 40}),
    "qwen3": ("qwen3", {"head_dim": 24, "attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "head_dim": 24, "mlp_only_layers": [0]}),
    "smollm3": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "starcoder2": ("starcoder2", {"use_bias": True}),
    "starcoder2_unbiased": ("starcoder2", {"use_bias": False}),
}


# What `--mapping` takes, for the model `llama`.
LLAMA_MAPPING = """
embedding = "model.embed_tokens"
attn = "re:.*self_attn$"
attn_q = "re:.*q_proj$"
attn_k = "re:.*k_proj$"
attn_v = "re:.*v_proj$"
attn_o = "re:.*o_proj$"
mlp_in = ["re:.*gate_proj$", "re:.*up_proj$"]
mlp_out = ["re:.*down_proj$"]
lm_head = "lm_head"
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


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its checkpoint, and what it answers."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    logits: Tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @cached_property
    def architecture(self) -> Architecture:
        """Its parts."""
        return resolve(self.config, self.shapes)

    def allows(self, *operations: str) -> bool:
        """Whether all of these would be exact."""
        return not {*operations} & {*self.architecture.refusals}

    def error(self, folder: Path) -> float:
        """How far the answers of a changed checkpoint are from its own."""
        return difference(logits(load(folder)), self.logits)


Models = Callable[..., Tiny]


def maker(root: pytest.TempPathFactory) -> Models:
    """Makes tiny models, each once for the same arguments."""

    @cache
    def make_one(name: str, tied: bool = False, hidden: int = 64) -> Tiny:
        folder = make(name, root.mktemp(name), tied=tied, hidden=hidden)
        config, tensors = read(folder)
        return Tiny(folder, config, tensors, logits(load(folder)))

    return make_one


def make(
    name: str,
    directory: Path,
    *,
    tied: bool = False,
    hidden: int = 64,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Save the model `name` in several shards.

    Args:
        name: one of `MODELS`.
        directory: where to.
        tied: whether head and embedding are one.
        hidden: width of the residual stream; a multiple of 8.
        dtype: of all weights.
        overrides: config keys, of the language model.
    """
    config = _config(name, tied, hidden, overrides)
    wrapped = hasattr(config, "text_config")
    auto: Any = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype).eval()
    offset = 1.0 if "gemma" in name else 0.0
    generator = torch.Generator().manual_seed(len(name) + hidden)
    with torch.no_grad():
        for parameter, values in model.state_dict().items():
            values.copy_(_random(parameter, values, offset, generator))
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(directory, max_shard_size=nbytes // 3)
    return directory


def _config(name: str, tied: bool, hidden: int, overrides: Mapping[str, Any]) -> Any:
    model_type, more = MODELS[name]
    values: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        **more,
        **overrides,
    }
    if model_type.startswith("opt"):
        values = {"word_embed_proj_dim": hidden, **values}
        del values["num_key_value_heads"], values["intermediate_size"]
    if model_type == "gemma3":
        return AutoConfig.for_model(
            "gemma3",
            text_config={"head_dim": 24, **values},
            vision_config=_TOWER,
            mm_tokens_per_image=4,
            tie_word_embeddings=tied,
        )
    return AutoConfig.for_model(model_type, **values)


def _random(name: str, values: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Gains between 0.4 and 2.5, biases around 0.5 in size, weights that keep the variance."""
    noise = torch.randn(values.shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 0.4 + 2.1 * torch.rand(values.shape, generator=generator) - offset
    if values.ndim < 2:
        return 0.5 * noise
    return noise if "embed" in name else noise / values.shape[-1] ** 0.5


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    return json.loads((directory / "config.json").read_text()), tensors


def write(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Save tensors, as float32, and config.json in one file each."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    # Experts of a layer may share storage until they are saved.
    stored = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def restore(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Put tensors in place of all of a checkpoint's."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(directory: Path) -> Any:
    """The model in float32, as transformers loads it; every tensor has to be taken."""
    config = AutoConfig.from_pretrained(directory)
    wrapped = hasattr(config, "text_config")
    auto: Any = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    model, report = auto.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return model.eval()


def tokens() -> Tensor:
    """Token ids, [2, 12], without special ones."""
    return torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))


def logits(model: Any) -> Tensor:
    """Its answer to `tokens()`, [2, 12, vocabulary]."""
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens()).logits
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((found - expected).abs().max() / expected.abs().max())
