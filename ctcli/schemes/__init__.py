"""Numeric families, one file each, and the one table that lists them."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Family

FAMILIES = ("integer", "float8", "nvfp4", "mx")


def family_of(scheme: Scheme) -> Family:
    """The family that quantizes weights of this scheme.

    Raises:
        ValueError: none does, or it does not write the scheme's format.
    """
    for name in FAMILIES:
        family = cast(Family, import_module(f"ctcli.schemes.{name}"))
        if family.accepts(scheme):
            if scheme.format not in family.FORMATS:
                raise ValueError(
                    f"format {scheme.format!r}: these weights are written as "
                    f"{' or '.join(family.FORMATS)}"
                )
            return family
    weights = scheme.weights
    raise ValueError(
        f"no weights of type {weights.type} with {weights.num_bits} bits, strategy "
        f"{weights.strategy} and group_size {weights.group_size} are known"
    )
