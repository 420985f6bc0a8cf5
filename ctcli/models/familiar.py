"""Linears by whether any record knows their names: others are told before they are quantized."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from ctcli.models.families import FAMILIES
from ctcli.models.fused import FUSED_ROLES

_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")
# Of multi-head latent attention, which records name by its layout, and of models that have no
# record, as servers know them.
_OTHERS = (
    "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj wq_b wo wo_a wo_b wq wkv wqkv Wo Wi W_pack "
    "f_b_proj g_b_proj x_proj dt_proj gate_up_proj qkv_proj qkv proj fc1 fc2 linear gate up down "
    "index_qk_proj wgate query_key_value dense kv_proj"
)


@cache
def _known() -> frozenset[str]:
    """The last components of the names of all linears that records tell."""
    return frozenset([*_OTHERS.split(), *_told()])


def _told() -> Iterator[str]:
    for roles in FUSED_ROLES:
        yield from roles.members
    for family in FAMILIES.values():
        names: list[str] = []
        for attention in family.attentions:
            names += [*attention.inputs, *attention.extras, attention.output]
        for mlp in family.mlps:
            names += [*mlp.inputs, mlp.output]
        for mixer in family.mixers:
            names += [*mixer.inputs, mixer.output]
        yield from (_leaf(name.replace("*", "0")) for name in names)


def _leaf(module: str) -> str:
    """The last component of a name that is no number."""
    parts = [part for part in module.split(".") if not part.isdecimal()]
    return parts[-1] if parts else module


def unfamiliar(linears: Iterable[str]) -> Mapping[str, int]:
    """How many linears there are of each pattern of names that no record knows.

    Args:
        linears: full names of modules.
    """
    strange = (name for name in linears if _leaf(name) not in _known())
    return Counter(_NUMBER.sub("*", name) for name in strange)
