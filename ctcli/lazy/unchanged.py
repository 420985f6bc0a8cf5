"""The kernel of nodes that only read in another way, such as transposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.lazy.nodes import Where

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks


@dataclass(frozen=True)
class Unchanged:
    """The one block that it reads, bit for bit: a kernel, see `lazy.nodes.Kernel`.

    Attributes:
        output: name of what comes out.
    """

    output: str = "weight"

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`."""
        (block,) = blocks.values()
        return {self.output: block}, ()
