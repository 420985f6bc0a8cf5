"""Fused sets: the linears that servers merge into one, found by tensor name.

vLLM and others load q, k and v (or gate and up) as one matrix, so tools that quantize a set
together want its members side by side. This table is the only place that says which they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple


class FusedRoles(NamedTuple):
    """Module names that make up one set under a common parent module."""

    members: tuple[str, ...]
    parents: tuple[str, ...] = ()  # last component of the parent's name; empty: any parent


_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer", "temporal_block")
FUSED_ROLES = (
    FusedRoles(("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj"), _ATTENTION),
    FusedRoles(("q_a_proj", "kv_a_proj_with_mqa")),
    FusedRoles(("wq_a", "wkv_a_with_mqa", "wkv")),
    FusedRoles(("gate_proj", "up_proj")),
    FusedRoles(("w1", "w3")),
    FusedRoles(("c_fc_0", "c_fc_1")),
    FusedRoles(("wq", "wk", "wv"), ("self_attn", "attn", "attention")),
    FusedRoles(("wq_du", "wk_dv", "wv_dv", "wr_du"), ("attn",)),
    FusedRoles(("query", "key", "value"), ("self",)),
    FusedRoles(("k_proj", "v_proj"), ("encoder_attn",)),
    FusedRoles(("q_proj", "k_proj", "v_proj", "g_proj"), ("linear_attn",)),
    FusedRoles(("in_proj_qkv", "in_proj_z")),
    FusedRoles(("in_proj_b", "in_proj_a")),
    FusedRoles(("wk", "weights_proj"), ("indexer",)),
    FusedRoles(("wkv", "wgate"), ("compressor",)),
)


class FusedSet(NamedTuple):
    """The members of a set that a checkpoint holds, with all their tensors."""

    parent: str
    members: tuple[str, ...]
    tensors: tuple[str, ...]

    @property
    def name(self) -> str:
        """A readable name: `model.layers.0.self_attn.{q_proj,k_proj,v_proj}`."""
        prefix = f"{self.parent}." if self.parent else ""
        return f"{prefix}{{{','.join(self.members)}}}"


# By member, the places in the table of the sets that it may belong to; those of some parents first.
_ROLES_OF: dict[str, list[int]] = {}
for _place, _roles in sorted(enumerate(FUSED_ROLES), key=lambda each: not each[1].parents):
    for _member in _roles.members:
        _ROLES_OF.setdefault(_member, []).append(_place)


def _membership(name: str) -> tuple[str, int, str] | None:
    """The parent module, place in the table and member that a tensor's name stands for, if any."""
    modules = name.split(".")
    if _ROLES_OF.keys().isdisjoint(modules):
        return None
    for place, member in enumerate(modules):
        for roles in _ROLES_OF.get(member, ()):
            parents = FUSED_ROLES[roles].parents
            if not parents or (place and modules[place - 1] in parents):
                return ".".join(modules[:place]), roles, member
    return None


def fused_sets(names: Iterable[str]) -> list[FusedSet]:
    """Group tensor names into fused sets, in order of first appearance.

    A member that is missing is no error: whatever members exist form the set. One member alone
    is no set. All tensors below a member's module (weight, bias, scales) belong to it.
    """
    # Member and name in turn: of very many sets, tables would take most of the memory.
    found: dict[tuple[str, int], list[str]] = {}
    for name in names:
        if membership := _membership(name):
            parent, roles, member = membership
            found.setdefault((parent, roles), []).extend((sys.intern(member), name))
    sets = (_set(key[0], FUSED_ROLES[key[1]], found.pop(key)) for key in [*found])
    return [each for each in sets if len(each.members) > 1]


def _set(parent: str, roles: FusedRoles, told: list[str]) -> FusedSet:
    """A set of what was told of it: members and names of tensors in turn."""
    there, names = told[::2], told[1::2]
    return FusedSet(
        parent,
        _members(roles, frozenset(there)),
        tuple(
            n for member in roles.members for m, n in zip(there, names, strict=True) if m == member
        ),
    )


@cache
def _members(roles: FusedRoles, there: frozenset[str]) -> tuple[str, ...]:
    """The members that are there, in order: one for all sets that have the same."""
    return tuple(member for member in roles.members if member in there)
