"""What config.json (Hugging Face) or params.json (Meta, Mistral) says of a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        invalid: values that make no sense.
    """

    sizes: Mapping[str, int]
    norm_eps: float
    rope_theta: float
    is_tied: bool
    deviations: tuple[str, ...]
    invalid: tuple[str, ...]


def from_config_json(config: Mapping[str, Any]) -> LlamaConfig:
    """Read transformers' config.json, of version 4 (`rope_theta`) or 5 (`rope_parameters`)."""
    values = _Values(config)
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
    rope = values.table("rope_parameters")
    scaling = values.table("rope_scaling")
    theta = values.number("rope_theta", 10000.0)
    if "rope_theta" in rope:
        theta = _Values(rope, values.invalid).number("rope_theta", 10000.0)
    return LlamaConfig(
        sizes,
        values.number("rms_norm_eps", 1e-6),  # transformers' own default
        theta,
        config.get("tie_word_embeddings") is True,
        tuple(_deviations(config, rope, scaling)),
        tuple(values.invalid),
    )


def from_params_json(params: Mapping[str, Any]) -> LlamaConfig:
    """Read Meta's or Mistral's params.json."""
    values = _Values(params)
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
        tuple(values.invalid),
    )


def _deviations(
    config: Mapping[str, Any], rope: Mapping[str, Any], scaling: Mapping[str, Any]
) -> list[str]:
    found = []
    if config.get("model_type") not in _LLAMAS:
        found.append(
            f"model_type {config.get('model_type')!r}: only {' and '.join(_LLAMAS)} are known to "
            "compute what the readers compute."
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
        found.append(f"hidden_act {activation!r}: both readers compute SiLU.")
    return found


class _Values:
    """Values of a JSON object, with a note of each that makes no sense."""

    def __init__(self, table: Mapping[str, Any], invalid: list[str] | None = None) -> None:
        self._table = table
        self.invalid: list[str] = [] if invalid is None else invalid

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; the default where it is absent or null."""
        value = self._table.get(key)
        if value is None and default is not None:
            return default
        if type(value) is int and 0 < value < 2**31:
            return value
        self._refuse(key, value, "positive 32-bit integer")
        return 0

    def number(self, key: str, default: float) -> float:
        """A positive number; the default where it is absent or null."""
        value = self._table.get(key)
        if value is None:
            return default
        if type(value) in (int, float) and 0 < value < 2.0**127:
            return float(value)
        self._refuse(key, value, "positive number")
        return default

    def table(self, key: str) -> Mapping[str, Any]:
        """An object; empty where it is absent or null."""
        value = self._table.get(key) or {}
        if isinstance(value, Mapping):
            return value
        self._refuse(key, value, "JSON object")
        return {}

    def _refuse(self, key: str, value: Any, wanted: str) -> None:
        found = "missing" if value is None else f"{value!r}"
        self.invalid.append(f"{key} is {found}, not a {wanted}.")
