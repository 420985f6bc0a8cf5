"""What config.json (Hugging Face) or params.json (Meta, Mistral) says of a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.models.config import Section, shown

# Model types that compute what Llama computes. Others share its tensor names and not its formulas.
_LLAMAS = ("llama", "mistral")
_SILU = ("silu", "swish")
_NO_SCALING = (None, "default")


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama's sizes and constants.

    Attributes:
        sizes: dim, n_layers, n_heads, n_kv_heads and head_dim; hidden_dim, vocab_size, max_seq_len
            and sliding_window where they are given.
        norm_eps: epsilon of the RMS norms.
        rope_theta: base of the rotary frequencies.
        is_tied: whether the classifier is declared to be the embedding.
        deviations: where its formulas are not those of Llama 2.
        invalid: a line for each value that is missing or makes no sense.
    """

    sizes: Mapping[str, int]
    norm_eps: float
    rope_theta: float
    is_tied: bool
    deviations: tuple[str, ...]
    invalid: tuple[str, ...]


def from_config_json(config: Mapping[str, Any]) -> LlamaConfig:
    """Read transformers' config.json, of version 4 (`rope_theta`) or 5 (`rope_parameters`)."""
    invalid: list[str] = []
    section = Section("config.json", config, invalid)
    values = _Values(section)
    sizes = {
        "dim": values.size("hidden_size"),
        "hidden_dim": values.size("intermediate_size"),
        "n_layers": values.size("num_hidden_layers"),
        "n_heads": (heads := values.size("num_attention_heads")),
        "n_kv_heads": values.size("num_key_value_heads", heads),
        "vocab_size": values.size("vocab_size"),
        "max_seq_len": values.size("max_position_embeddings", 0),
        "sliding_window": values.size("sliding_window", 0),
    }
    sizes["head_dim"] = values.size("head_dim", sizes["dim"] // max(1, heads))
    rope_parameters = section.section("rope_parameters")
    rope, scaling = rope_parameters.values, section.section("rope_scaling").values
    theta = values.number("rope_theta", 10000.0)
    if "rope_theta" in rope:
        theta = _Values(rope_parameters).number("rope_theta", 10000.0)
    return LlamaConfig(
        sizes,
        values.number("rms_norm_eps", 1e-6),  # transformers' own default
        theta,
        config.get("tie_word_embeddings") is True,
        tuple(_deviations(config, rope, scaling)),
        tuple(invalid),
    )


def from_params_json(params: Mapping[str, Any]) -> LlamaConfig:
    """Read Meta's or Mistral's params.json."""
    invalid: list[str] = []
    values = _Values(Section("params.json", params, invalid))
    sizes = {
        "dim": values.size("dim"),
        "hidden_dim": values.size("hidden_dim", 0),
        "n_layers": values.size("n_layers"),
        "n_heads": (heads := values.size("n_heads")),
        "n_kv_heads": values.size("n_kv_heads", heads),
        # Meta writes -1 and leaves it to the tokenizer.
        "vocab_size": 0 if params.get("vocab_size") == -1 else values.size("vocab_size", 0),
        "max_seq_len": values.size("max_seq_len", 0),
        "sliding_window": values.size("sliding_window", 0),
    }
    sizes["head_dim"] = values.size("head_dim", sizes["dim"] // max(1, heads))
    deviations = []
    if params.get("use_scaled_rope") or params.get("yarn") or params.get("rope_scaling"):
        deviations.append("RoPE scaling: both readers compute plain RoPE.")
    if params.get("moe"):
        deviations.append("moe: a mixture of experts has no place in the format.")
    return LlamaConfig(
        sizes,
        values.number("norm_eps", 1e-5),  # Meta's own default
        values.number("rope_theta", 10000.0),
        params.get("tied_embeddings") is True,
        tuple(deviations),
        tuple(invalid),
    )


def _deviations(
    config: Mapping[str, Any], rope: Mapping[str, Any], scaling: Mapping[str, Any]
) -> list[str]:
    found = []
    if config.get("model_type") not in _LLAMAS:
        found.append(
            f"model_type {shown(config.get('model_type'))}: only {' and '.join(_LLAMAS)} are known "
            "to compute what the readers compute."
        )
    kinds = [rope.get("rope_type", rope.get("type"))]
    if scaling:
        kinds.append(scaling.get("rope_type", scaling.get("type", "of no type")))
    if nested := sorted(key for key, value in rope.items() if isinstance(value, Mapping)):
        kinds.append(f"one for each of {', '.join(nested)}")
    found += [
        f"RoPE scaling ({kind}): both readers compute plain RoPE."
        for kind in kinds
        if kind not in _NO_SCALING
    ]
    if any(table.get("partial_rotary_factor") not in (None, 1.0) for table in (config, rope)):
        found.append("partial_rotary_factor: both readers rotate whole heads.")
    activation = config.get("hidden_act", "silu")
    if activation not in _SILU:
        found.append(f"hidden_act {shown(activation)}: both readers compute SiLU.")
    return found


class _Values:
    """Values of a JSON object with their defaults, and a note of each that makes no sense."""

    def __init__(self, section: Section) -> None:
        self._section = section

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; the default where it is absent or null."""
        if default is None:
            return self._section.needed_size(key)
        found = self._section.size(key)
        return default if found is None else found

    def number(self, key: str, default: float) -> float:
        """A positive number; the default where it is absent or null."""
        found = self._section.number(key)
        return default if found is None else found
