"""Models by commands: what each record admits, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ctcli.models.architecture import Operation
from ctcli.models.families import FAMILIES
from ctcli.models.family import Family

COMMANDS: Mapping[str, Operation] = {
    "fuse-norms": "fuse-norms",
    "rotate R1": "R1",
    "rotate R2": "R2",
    "rotate R4": "R4",
}
_BEHIND = "norms behind blocks"


def refusals_of(family: Family) -> dict[Operation, str]:
    """What a record does not admit whatever its config.json says, and why."""
    found: dict[Operation, str] = {}
    if any(not norm.feeds and not norm.optional for norm in family.norms):
        found["R1"] = _BEHIND
    outputs = [f"{mlp.module}.{mlp.output}" for mlp in family.mlps]
    if family.transposed or any("*" in output.rpartition(".")[2] for output in outputs):
        found["R4"] = "MLPs stored together or transposed"
    return {**found, **dict(family.refusals)}


def rows() -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """Each model type, and for each of `COMMANDS` why it is refused; None: it is exact.

    All types are quantized, and read by `inspect` and `verify`, known or not.
    """
    for name, family in FAMILIES.items():
        refused = refusals_of(family)
        yield name, tuple(refused.get(operation) for operation in COMMANDS.values())
