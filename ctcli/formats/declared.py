"""A checkpoint's own `quantization_config`, read as facts; whoever wrote it.

Which module a group means is decided as vLLM and compressed-tensors do: what `ignore` matches is
left alone; names and expressions come before the class Linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ctcli.models.protected import is_embedding
from ctcli.patterns import matches
from ctcli.schemes import default_format
from ctcli.schemes.arguments import QuantizationArgs, Scheme

QUANT_METHOD = "compressed-tensors"
_LINEAR = "Linear"
_ONLINE = ("input", "output", "q_attn", "k_cache")


@dataclass(frozen=True)
class Group:
    """One of the `config_groups`.

    Attributes:
        name: its key.
        targets: names, `re:` expressions, or the class Linear.
        scheme: how it quantizes.
    """

    name: str
    targets: tuple[str, ...]
    scheme: Scheme

    def names(self, module: str) -> bool:
        """Whether a target other than a class matches a module."""
        return any(target != _LINEAR and matches(target, module) for target in self.targets)

    @property
    def takes_linears(self) -> bool:
        """Whether the class Linear is among the targets."""
        return _LINEAR in self.targets


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
    """

    method: str
    groups: tuple[Group, ...] = ()
    ignore: tuple[str, ...] = ()
    transforms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sparsity: bool = False
    problems: tuple[str, ...] = ()

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
    parts = [config, config.get("text_config")]
    found = [
        part[key]
        for part in parts
        if isinstance(part, Mapping)
        for key in ("quantization_config", "compression_config")
        if isinstance(part.get(key), Mapping)
    ]
    if not found:
        return None
    method = str(found[0].get("quant_method", "unnamed"))
    return _read(found[0]) if method == QUANT_METHOD else Declaration(method)


def _read(config: Mapping[str, Any]) -> Declaration:
    groups, problems = [], []
    for name, entry in _table(config.get("config_groups")).items():
        try:
            groups.append(_group(name, entry, config.get("format")))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            problems.append(f"config.json: {name}: {error}.")
    ignore = config.get("ignore") or []
    transforms = _table(_table(config.get("transform_config")).get("config_groups"))
    return Declaration(
        QUANT_METHOD,
        tuple(groups),
        tuple(map(str, ignore)) if isinstance(ignore, list) else (),
        {name: online for name, entry in transforms.items() if (online := _locations(entry))},
        bool(config.get("sparsity_config")),
        tuple(problems),
    )


def _group(name: str, entry: Mapping[str, Any], overall: str | None) -> Group:
    if not entry.get("weights"):
        raise ValueError("it does not quantize weights")
    if entry.get("output_activations"):
        raise ValueError("it quantizes output activations, which ctcli does not know")
    weights = _arguments(entry["weights"])
    inputs = entry.get("input_activations")
    activations = _arguments(inputs) if inputs else None
    layout = entry.get("format") or (overall if overall != "mixed-precision" else None)
    scheme = Scheme(name, weights, activations, layout or default_format(weights, activations))
    targets = entry.get("targets") or [_LINEAR]
    return Group(name, (targets,) if isinstance(targets, str) else tuple(targets), scheme)


def _arguments(entry: Mapping[str, Any]) -> QuantizationArgs:
    """Arguments; the order in which columns were calibrated does not concern their reader."""
    return QuantizationArgs.from_config({**entry, "actorder": None})


def _locations(entry: Any) -> tuple[str, ...]:
    places = _table(entry).get("apply") or []
    found = [_table(place).get("location") for place in places if isinstance(places, list)]
    return tuple(dict.fromkeys(location for location in found if location in _ONLINE))


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
