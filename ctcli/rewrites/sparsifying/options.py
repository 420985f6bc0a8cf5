"""The options of `ctcli sparsify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctcli.options import OptionError, option
from ctcli.rewrites.options import RewriteOptions, shard_size
from ctcli.rewrites.sparsifying.pruning import Sparsity


@dataclass(frozen=True)
class SparsifyOptions(RewriteOptions):
    """Prune linears by magnitude: the smallest weights become zeros, and stay so when quantized.

    Today's loaders gain neither speed nor space by it: to vLLM and transformers these are numbers
    like others. The modules are those that quantize takes.
    """

    pattern: Literal["2:4"] | None = option(
        None, "Keep the 2 largest of every 4 weights in a row.", "none"
    )
    density: float | None = option(
        None, "Keep this share of the weights in each row, the largest (0.5).", metavar="SHARE"
    )
    targets: tuple[str, ...] = option(
        (),
        "Module to prune although it is protected by default (lm_head). Repeatable.",
        "linears",
        metavar="PATTERN",
    )
    ignore: tuple[str, ...] = option(
        (),
        "Module to leave alone, beside the default ones. Repeatable.",
        "embeddings, heads, routers, norms, convolutions, towers, MTP",
        metavar="PATTERN",
    )
    default_ignore: bool = option(
        True, "Leave the default modules alone.", flags="--default-ignore/--no-default-ignore"
    )
    max_shard_size: int | None = shard_size()

    def __post_init__(self) -> None:
        """Refuse what says nothing, or two things."""
        if (self.pattern is None) == (self.density is None):
            raise OptionError("Give either --pattern 2:4 or --density SHARE.")
        if self.density is not None and not 0 < self.density < 1:
            raise OptionError(f"--density {self.density}: give a share between 0 and 1.")
        _ = self.recipe

    @property
    def sparsity(self) -> Sparsity:
        """How many weights stay."""
        return Sparsity(self.density)
