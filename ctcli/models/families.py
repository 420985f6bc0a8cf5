"""Families of language models by type: the record that holds for a config.json.

Records are read off the models' definitions in transformers; tests prove each by arithmetic.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ctcli.errors import CtcliError
from ctcli.models.config import classes, table, text_config
from ctcli.models.family import Attention, Family, Mixer, Mlp, Norm
from ctcli.models.records import decoders, experts, hybrids, pioneers

__all__ = ["FAMILIES", "Attention", "Family", "Mixer", "Mlp", "Norm", "family_of", "model_type"]

# By model type, which is that of `text_config` in models of several modalities.
_ROWS = (decoders.ROWS, decoders.TEXT_ROWS, experts.ROWS, hybrids.ROWS, pioneers.ROWS)
FAMILIES: Mapping[str, Family] = dict(sorted(row for rows in _ROWS for row in rows.items()))


def model_type(config: Mapping[str, Any]) -> str:
    """The language model's type: by its own key, or by the class that config.json names."""
    text = text_config(config)
    if named := text.get("model_type"):
        return str(named)
    name = (*classes(config), "unknown")[0].removesuffix("ForCausalLM")
    known = {found.replace("_", ""): found for found in FAMILIES}
    return known.get(name.lower(), name)


def family_of(config: Mapping[str, Any]) -> Family:
    """The declaration that holds for a config.json.

    Raises:
        CtcliError: there is none.
    """
    name = model_type(config)
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.5)
        like = f" (near it: {', '.join(near)})" if near else ""
        raise CtcliError(
            f"config.json: model type {name!r} is not one whose architecture is known{like}.",
            f"{len(FAMILIES)} types are known; for others, describe the model in a file and give "
            "--mapping FILE: `ctcli help rotations` shows one.",
        )
    family = FAMILIES[name]
    return _variant(family, text_config(config))


def _variant(family: Family, text: Mapping[str, Any]) -> Family:
    """The record that holds for a config; keys may be of the attention's own section."""
    values = {**table(text.get("attn_config")), **text}
    found = next((v for key, value, v in family.variants if values.get(key) == value), None)
    return _variant(found, text) if found else family


def whole_of(config: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Matches the linears that servers have no quantization for; None: there are none."""
    family = FAMILIES.get(model_type(config)) if config else None
    return re.compile("|".join(family.whole)) if family and family.whole else None
