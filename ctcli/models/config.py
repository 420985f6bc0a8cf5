"""What config.json says of a model, whatever the types of its values are.

A value of a wrong type counts as absent, unless a command cannot do without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(value: Any) -> Mapping[str, Any]:
    """A JSON object; empty if the value is none."""
    return value if isinstance(value, Mapping) else {}


def shown(value: Any) -> str:
    """A value for a message, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model."""
    return config["text_config"] if is_nested(config) else config


def is_nested(config: Mapping[str, Any]) -> bool:
    """Whether that is a part of its own, as in models of several modalities."""
    return isinstance(config.get("text_config"), Mapping)


def size_of(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these sizes that is given as a positive whole number."""
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and value > 0), None)


def classes(config: Mapping[str, Any]) -> list[str]:
    """The names of the model's classes; empty if there are none."""
    for part in (text_config(config), config):
        found = part.get("architectures")
        if isinstance(found, list) and found:
            return [str(name) for name in found]
    return []


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """What config.json says of the head being the embedding; None: nothing."""
    for part in (config, text_config(config)):
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    return None


def quantizations(config: Mapping[str, Any]) -> list[Any]:
    """All that config.json says of quantization, the more telling first; of any type."""
    parts = [config, text_config(config)] if is_nested(config) else [config]
    keys = ("quantization_config", "compression_config")
    return [part[key] for part in parts for key in keys if part.get(key) is not None]
