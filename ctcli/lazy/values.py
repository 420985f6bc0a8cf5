"""Small values that need a pass over the data: collected, counted, and let go after their use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ctcli.lazy.evaluate import combined
from ctcli.lazy.nodes import Node

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block


class Values:
    """The values of a run; used by one thread, but for `known`, which others only read.

    Attributes:
        known: by key of their node.
    """

    def __init__(self) -> None:
        self.known: dict[str, Block] = {}
        self._parts: dict[str, dict[int, Block]] = {}
        self._left: Counter[str] = Counter()

    def expect(self, node: Node, jobs: int) -> None:
        """So many jobs of a node will come, each of which reads its values."""
        self._left.update({value.key: jobs for value in node.values})

    def has(self, needs: Iterable[Node]) -> bool:
        """Whether all of these are known now."""
        return all(node.key in self.known for node in needs)

    def add(self, node: Node, start: int, part: Block, jobs: int) -> None:
        """Take what one of so many jobs found; the last one makes the value.

        Parts are combined in the order of the rows (columns), so that no race shows in the value.
        """
        parts = self._parts.setdefault(node.key, {})
        parts[start] = part
        if len(parts) == jobs:
            assert node.combine, "it is a value"
            self.known[node.key] = combined([parts[at] for at in sorted(parts)], node.combine)
            del self._parts[node.key]

    def used(self, node: Node) -> None:
        """One of a node's jobs is done."""
        for value in node.values:
            self._left[value.key] -= 1
            if not self._left[value.key]:
                del self._left[value.key], self.known[value.key]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(value.nbytes for value in [*self.known.values()]) + sum(
            part.nbytes for parts in self._parts.values() for part in parts.values()
        )
