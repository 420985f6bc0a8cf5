"""The options of `ctcli sparsify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ctcli.checkpoint.value import StepTable
from ctcli.errors import CtcliError
from ctcli.options import OptionError, option
from ctcli.rewrites.options import RewriteOptions, shard_size
from ctcli.rewrites.sparsifying.pruning import Sparsity
from ctcli.storage.steps import make_options

_MIXES = ("rotate",)  # after these steps, nothing is left of zeros


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
        True,
        "Whether the default modules are left alone.",
        flags="--default-ignore/--no-default-ignore",
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


def pruning_of(steps: Sequence[StepTable]) -> SparsifyOptions | None:
    """How weights were pruned, if they were and nothing mixed them since.

    Args:
        steps: all that was done to them, oldest first, as recipes of anybody's have them.
    """
    names = [step.get("use") for step in steps]
    if "sparsify" not in names:
        return None
    last = len(names) - 1 - names[::-1].index("sparsify")
    if any(name in _MIXES for name in names[last:]):
        return None
    try:
        return make_options(SparsifyOptions, steps[last])
    except CtcliError:  # such options there are not
        return None
