"""The modules of a checkpoint: what each is, and the tensors that make it up."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ctcli.lazy.tensors import TensorSpec
from ctcli.models.experts import packed_experts
from ctcli.models.families import whole_of
from ctcli.models.protected import Kind, kind_of, layers_of


class _Specified(Protocol):
    @property
    def spec(self) -> TensorSpec: ...


T_co = TypeVar("T_co", bound=_Specified, covariant=True)
# What stands for a matrix, unpacked or not.
_WEIGHTS = ("weight", "weight_packed", "qweight", "")


class Module(NamedTuple, Generic[T_co]):
    """A module that has tensors of its own.

    Attributes:
        name: its full name; of experts that are packed without a module, the tensor's.
        kind: what it is.
        several: its parts; None where these are one tensor, `weight`, as of most of very many.
        weight: its weight as it stands.
    """

    name: str
    kind: Kind
    several: Mapping[str, T_co] | None
    weight: T_co | None

    @property
    def parts(self) -> Mapping[str, T_co]:
        """Its tensors by the last component of their names; `` is a tensor of its own name."""
        if self.several is not None:
            return self.several
        assert self.weight is not None, "it has no other part"
        return {"weight": self.weight}

    @property
    def weight_name(self) -> str:
        """The full name of that tensor."""
        return self.tensor("weight" if "weight" in self.parts else "")

    @property
    def bias(self) -> T_co | None:
        """Its bias."""
        return self.parts.get("bias")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it stands; empty where there is none."""
        weight = self.weight
        return weight.spec.shape if weight else ()

    @property
    def leaf(self) -> str:
        """The last component of its name."""
        return self.name.rpartition(".")[2]

    def tensor(self, part: str) -> str:
        """The full name of one of its tensors."""
        return f"{self.name}.{part}" if self.name and part else self.name or part


def modules_of(tensors: Mapping[str, T_co], config: Mapping[str, Any]) -> dict[str, Module[T_co]]:
    """The modules of a checkpoint by name, in the order of their weights.

    Args:
        tensors: all of them, by name.
        config: config.json.
    """
    parts: dict[str, T_co | dict[str, T_co]] = {}
    order: dict[str, None] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" and packed_experts(name, tensor.spec):
            module, leaf = name, ""
        own = parts.get(module)
        if own is None:
            parts[module] = tensor if leaf == "weight" else {sys.intern(leaf): tensor}
        elif isinstance(own, dict):
            own[sys.intern(leaf)] = tensor
        else:
            parts[module] = {"weight": own, sys.intern(leaf): tensor}
        if leaf in _WEIGHTS:
            order[module] = None
    layers, whole = layers_of(config), whole_of(config)
    found: dict[str, Module[T_co]] = {}
    for name in chain(order, (name for name in parts if name not in order)):
        own = parts[name]
        several = own if isinstance(own, dict) else None
        weight = own.get("weight") or own.get("") if isinstance(own, dict) else own
        kind = kind_of(name, layers) or _kind(name, several or {}, weight)
        if whole and kind == "linear" and whole.fullmatch(name):
            kind = "whole"
        found[name] = Module(name, kind, several, weight)
    return found


def _kind(name: str, parts: Mapping[str, _Specified], weight: _Specified | None) -> Kind:
    """What a module is whose name does not say it; `weight` is its weight as it stands."""
    weight = weight or parts.get("weight_packed") or parts.get("qweight")
    if weight is None:
        return "other"
    dimensions = len(weight.spec.shape)
    if dimensions == 3 and packed_experts(name, weight.spec):
        return "experts"
    return "linear" if dimensions == 2 or "qweight" in parts else "other"
