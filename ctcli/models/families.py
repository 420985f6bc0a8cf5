"""Families of language models by type: the record that holds for a config.json.

Records are read off the models' definitions in transformers; tests prove each by arithmetic.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal

from ctcli.errors import CtcliError
from ctcli.models.config import classes, table, text_config
from ctcli.models.family import Attention, Family, Mixer, Mlp, Norm
from ctcli.models.records import decoders, experts, hybrids, pioneers

__all__ = ["FAMILIES", "Attention", "Family", "Mixer", "Mlp", "Norm", "family_of", "model_type"]

# By model type, which is that of `text_config` in models of several modalities.
_ROWS = (decoders.ROWS, decoders.TEXT_ROWS, experts.ROWS, hybrids.ROWS, pioneers.ROWS)
FAMILIES: Mapping[str, Family] = dict(sorted(row for rows in _ROWS for row in rows.items()))

_UNKNOWN = "unknown"

WITHOUT_RECORD: Mapping[str, str] = {
    "axk2": "a gate of the stream follows each norm",
    "deepseek_v4": "several streams are mixed",
    "hrm_text": "two stacks are run in turns",
    "hy_v4": "several streams are mixed",
    "inkling_text": "convolutions run along what blocks write",
    "modernbert-decoder": "a head of two layers",
    "qwen4_exp_text": "several streams are mixed",
    "zamba": "one attention block is shared by layers",
    "zamba2": "one attention block is shared by layers",
    "zaya": "scales of the stream itself",
}
"""Decoders of transformers 5.17 that a record cannot tell, and why."""


def model_type(config: Mapping[str, Any]) -> str:
    """The language model's type: by its own key, or by the class that config.json names."""
    text = text_config(config)
    if named := text.get("model_type"):
        return str(named)
    name = (*classes(config), _UNKNOWN)[0].removesuffix("ForCausalLM")
    known = {found.replace("_", ""): found for found in FAMILIES}
    return known.get(name.lower(), name)


def family_of(config: Mapping[str, Any]) -> Family:
    """The declaration that holds for a config.json.

    Raises:
        CtcliError: there is none.
    """
    name = model_type(config)
    if why := WITHOUT_RECORD.get(name):
        raise CtcliError(
            f"config.json: of model type {name!r} it is not known what is exact: {why}.",
            "Describe what of it is in a file and give --mapping FILE.",
        )
    hint = (
        f"{len(FAMILIES)} types are known; for others, describe the model in a file and give "
        "--mapping FILE: `ctcli help rotations` shows one."
    )
    if name == _UNKNOWN:
        what = "config.json: it names no model_type" if config else "there is no config.json"
        raise CtcliError(f"{what}, which says what type of model this is.", hint)
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.5)
        like = f" (near it: {', '.join(near)})" if near else ""
        raise CtcliError(
            f"config.json: model type {name!r} is not one whose architecture is known{like}.",
            hint,
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


Transposed = Literal["linears", "experts"]


# Types that have no record, and store their layers as another type does.
_STORED_LIKE = {
    "decision_transformer": "gpt2",
    "imagegpt": "gpt2",
    "llama4": "llama4_text",
    "qwen3_vl_moe": "llama4_text",
    "qwen3_vl_moe_text": "llama4_text",
}


def transposed(config: Mapping[str, Any]) -> Transposed | None:
    """What of a model's layers is stored [in, out]; None: nothing that is known of."""
    name = model_type(config)
    family = FAMILIES.get(_STORED_LIKE.get(name, name))
    if family is None or not family.transposed:
        return None
    return "experts" if family.stacked else "linears"
