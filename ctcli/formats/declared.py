"""A checkpoint's own `quantization_config`, read as facts; whoever wrote it.

Which module a group means is decided as vLLM and compressed-tensors do: what `ignore` matches is
left alone; names and expressions come before the class Linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ctcli.formats.groups import Group, GroupReader
from ctcli.models.config import quantizations, shown, table
from ctcli.models.protected import is_embedding
from ctcli.patterns import matches

QUANT_METHOD = "compressed-tensors"
_ONLINE = ("input", "output", "q_attn", "k_cache")


@dataclass(frozen=True)
class Declaration:
    """What config.json says about quantization.

    Attributes:
        method: `quant_method`; the rest is empty unless it is compressed-tensors.
        groups: in the file's order.
        ignore: patterns of modules that are left alone.
        transforms: rotations that are applied at run time: name and locations.
        sparsity: whether it declares sparse weights.
        problems: what cannot be read.
        has_unreadable_patterns: whether `ignore` or targets are not all here for that reason.
    """

    method: str
    groups: tuple[Group, ...] = ()
    ignore: tuple[str, ...] = ()
    transforms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sparsity: bool = False
    problems: tuple[str, ...] = ()
    has_unreadable_patterns: bool = False

    def group_of(self, module: str) -> Group | None:
        """The group that quantizes a module; None where it is left alone."""
        if module in self._ignored or any(matches(p, module) for p in self._ignored_by_expression):
            return None
        if named := next((group for group in self.groups if group.names(module)), None):
            return named
        if is_embedding(module):
            return None
        return next((group for group in self.groups if group.takes_linears), None)

    # Writers list thousands of exact names.
    @cached_property
    def _ignored(self) -> frozenset[str]:
        return frozenset(self.ignore)

    @cached_property
    def _ignored_by_expression(self) -> tuple[str, ...]:
        return tuple(pattern for pattern in self.ignore if pattern.startswith("re:"))


def read_declaration(config: Mapping[str, Any]) -> Declaration | None:
    """What a config.json declares; None if it does not mention quantization.

    Args:
        config: config.json.
    """
    said = quantizations(config)
    found = next((value for value in said if isinstance(value, Mapping)), None)
    if found is not None:
        method = str(found.get("quant_method", "unnamed"))
        return _read(found) if method == QUANT_METHOD else Declaration(method)
    if not any(said):
        return None
    problem = f"config.json: quantization_config is {shown(said[0])}, and not a table."
    return Declaration("unnamed", problems=(problem,))


def _read(config: Mapping[str, Any]) -> Declaration:
    reader = GroupReader("config.json", writes=False)
    groups, ignore = reader.groups(config), reader.ignore(config)
    transforms = table(table(config.get("transform_config")).get("config_groups"))
    return Declaration(
        QUANT_METHOD,
        groups,
        ignore,
        {name: online for name, entry in transforms.items() if (online := _locations(entry))},
        bool(config.get("sparsity_config")),
        tuple(reader.problems),
        reader.has_unreadable_patterns,
    )


def _locations(entry: Any) -> tuple[str, ...]:
    places = table(entry).get("apply")
    found = [table(place).get("location") for place in places] if isinstance(places, list) else []
    return tuple(dict.fromkeys(location for location in found if location in _ONLINE))
