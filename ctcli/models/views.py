"""Linears that are not stored as one matrix [out, in] each, seen as if they were."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctcli.models.architecture import View
from ctcli.models.checking import Shapes
from ctcli.models.family import Family


@dataclass(frozen=True)
class AsLinears:
    """The tensors of a checkpoint as linears of their own.

    Attributes:
        shapes: by name, each weight [out, in].
        views: where those lie that are no tensors of their own, by name.
        transposed: modules whose weights are stored [in, out].
    """

    shapes: Shapes
    views: Mapping[str, View]
    transposed: frozenset[str]


def seen(family: Family, layers: str, shapes: Shapes) -> AsLinears:
    """See a family's tensors as linears.

    Args:
        family: the declaration.
        layers: prefix of the names of all layers, with the dot.
        shapes: shape by tensor name.
    """
    if not (family.stacked or family.transposed or family.biases):
        return AsLinears(shapes, {}, frozenset())
    layer = rf"{re.escape(layers)}[0-9]+\."
    held = "|".join(family.stacked) or "(?!)"
    stacked = re.compile(rf"(?P<module>{layer}(?:{held}))(?P<suffix>\.weight|_bias)?")
    turned = re.compile(rf"{layer}(?:{'|'.join(family.transposed) or '(?!)'})")
    biases = dict(family.biases)
    found: dict[str, tuple[int, ...]] = {}
    views: dict[str, View] = {}
    for name, shape in shapes.items():
        of = re.match(layer, name)
        if of and (linear := biases.get(name[of.end() :])):
            views[f"{of[0]}{linear}.bias"], found[f"{of[0]}{linear}.bias"] = View(name, None), shape
            continue
        match = stacked.fullmatch(name)
        parts = dict(_parts(match["module"], match["suffix"] or "", name, shape)) if match else {}
        for part, (view, own) in parts.items():
            views[part], found[part] = view, own
        if not parts:
            found[name] = shape
    modules = {name.removesuffix(".weight") for name in found if name.endswith(".weight")}
    transposed = frozenset(module for module in modules if turned.fullmatch(module))
    for module in transposed:
        found[f"{module}.weight"] = found[f"{module}.weight"][::-1]
    return AsLinears(found, views, transposed)


def _parts(
    module: str, suffix: str, name: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, tuple[View, tuple[int, ...]]]]:
    """The matrices, or biases, in a tensor."""
    leaf = "bias" if suffix == "_bias" else "weight"
    if len(shape) == (2 if leaf == "bias" else 3):
        for index in range(shape[0]):
            yield f"{module}.{index}.{leaf}", (View(name, index), shape[1:])
    elif len(shape) == 2 and not suffix:
        yield f"{module}.weight", (View(name, None), shape)
