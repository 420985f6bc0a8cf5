"""The options of `ctcli equalize`."""

from __future__ import annotations

from dataclasses import dataclass

from ctcli.options import option
from ctcli.rewrites.options import shard_size
from ctcli.rewrites.surgery.options import SurgeryOptions


@dataclass(frozen=True)
class EqualizeOptions(SurgeryOptions):
    """Even out the columns of linears, so that 4 bits lose less; the model computes the same.

    Columns are scaled together in all linears that read the same activations, and what makes these
    is divided by as much: the norm's gain, the rows of up, those of the values. It takes no data.
    """

    rounds: int = option(
        1,
        "Rounds of Sinkhorn's scaling; each takes another pass over the weights.",
        least=1,
        most=32,
    )
    max_shard_size: int | None = shard_size()

    def __post_init__(self) -> None:
        """Hash and read what the options name."""
        _ = self.recipe
        _ = self.parts
