"""`ctcli run --init`: a commented recipe for a checkpoint, to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ctcli.inspecting.inspection import Inspection
from ctcli.inspecting.inspection import inspect as inspect_checkpoint
from ctcli.inspecting.offers import Offer
from ctcli.storage.opening import open_checkpoint
from ctcli.units import format_bytes

_FIRST = "W4A16"
_OTHERS = ("FP8_DYNAMIC", "NVFP4A16")


def first_recipe(source: str) -> str:
    """The recipe, as TOML; reads headers only.

    Raises:
        CtcliError: there is no such checkpoint.
    """
    found = inspect_checkpoint(open_checkpoint(source))
    return "\n".join(_lines(source, found)) + "\n"


def _lines(source: str, found: Inspection) -> Iterator[str]:
    family, size = found.family or "of an unknown family", format_bytes(found.checkpoint.nbytes)
    yield f"# A recipe for {source} ({family}, {size})."
    yield "# Save it as recipe.toml, then: ctcli run recipe.toml SRC DST"
    yield "# `use` names a command, the other keys are its options with underscores;"
    yield "# `ctcli help rotate` and `ctcli help quantize` explain them."
    yield ""
    reasons = {ability.name: ability.reasons for ability in found.abilities}
    rotations = [name for name in ("R1", "R2") if not reasons.get(f"rotate {name}")]
    if rotations:
        yield "# Rotations help where activations have 4 bits, too; without the #, a first step:"
        yield "# [[steps]]"
        yield '# use = "rotate"'
        yield f"# rotations = {json.dumps(rotations)}"
        yield ""
    yield "[[steps]]"
    yield 'use = "quantize"'
    yield f'scheme = "{_FIRST}"{_sizes(found.offers)}'
    offer = next((offer for offer in found.offers if offer.scheme == _FIRST), None)
    if offer and offer.options:
        yield f"group_size = {offer.options.split()[-1]}  # divides the columns of every weight"
    yield '# ignore = ["re:.*down_proj"]  # modules to leave alone, beside heads, routers, ...'
    yield '# max_shard_size = "5GB"'


def _sizes(offers: Sequence[Offer]) -> str:
    """What the schemes come to, as a comment."""
    sizes = {offer.scheme: format_bytes(offer.nbytes) for offer in offers if offer.nbytes}
    told = [f"{name}: {sizes[name]}" for name in (_FIRST, *_OTHERS) if name in sizes]
    return f"  # {'; '.join(told)}" if told else ""
