"""Fused sets: the linears that servers merge into one, found by tensor name.

vLLM and others load q, k and v (or gate and up) as one matrix, so tools that quantize a set
together want its members side by side. This table is the only place that says which they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class FusedRoles(NamedTuple):
    """Module names that make up one set under a common parent module."""

    members: tuple[str, ...]
    parents: tuple[str, ...] = ()  # last component of the parent's name; empty: any parent


_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer", "temporal_block")
FUSED_ROLES = (
    FusedRoles(("q_proj", "k_proj", "v_proj"), _ATTENTION),
    FusedRoles(("q_a_proj", "kv_a_proj_with_mqa")),
    FusedRoles(("wq_a", "wkv_a_with_mqa")),
    FusedRoles(("gate_proj", "up_proj")),
    FusedRoles(("w1", "w3")),
    FusedRoles(("c_fc_0", "c_fc_1")),
    FusedRoles(("wq", "wk", "wv"), ("self_attn", "attn", "attention")),
    FusedRoles(("q_proj", "k_proj", "v_proj", "g_proj"), ("linear_attn",)),
    FusedRoles(("in_proj_qkv", "in_proj_z")),
    FusedRoles(("in_proj_b", "in_proj_a")),
    FusedRoles(("wk", "weights_proj"), ("indexer",)),
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


_ROLES_OF: dict[str, list[FusedRoles]] = {}
for _roles in FUSED_ROLES:
    for _member in _roles.members:
        _ROLES_OF.setdefault(_member, []).append(_roles)


def _membership(name: str) -> tuple[str, FusedRoles, str] | None:
    """The parent module, roles and member that a tensor's name stands for, if any."""
    modules = name.split(".")
    for place, member in enumerate(modules):
        for roles in _ROLES_OF.get(member, ()):
            if not roles.parents or (place and modules[place - 1] in roles.parents):
                return ".".join(modules[:place]), roles, member
    return None


def fused_sets(names: Iterable[str]) -> list[FusedSet]:
    """Group tensor names into fused sets, in order of first appearance.

    A member that is missing is no error: whatever members exist form the set. One member alone
    is no set. All tensors below a member's module (weight, bias, scales) belong to it.
    """
    found: dict[tuple[str, FusedRoles], dict[str, list[str]]] = {}
    for name in names:
        if membership := _membership(name):
            parent, roles, member = membership
            found.setdefault((parent, roles), {}).setdefault(member, []).append(name)
    return [
        FusedSet(
            parent,
            tuple(member for member in roles.members if member in members),
            tuple(name for member in roles.members for name in members.get(member, ())),
        )
        for (parent, roles), members in found.items()
        if len(members) > 1
    ]
