"""`ctcli reindex`: every fused set in one shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctcli.checkpoint.sharding import cut_to_size, gather_fused_sets
from ctcli.checkpoint.value import Checkpoint
from ctcli.models.fused import FusedSet, fused_sets
from ctcli.options import option
from ctcli.rewrites.options import RewriteOptions, shard_size
from ctcli.units import format_bytes


@dataclass(frozen=True)
class ReindexOptions(RewriteOptions):
    """Put every fused set (q, k, v; gate, up; ...) into one shard.

    Each set goes where most of its bytes already are. Shards that do not change are copied byte
    for byte, and every other file of the checkpoint comes along.
    """

    link: bool = option(
        False,
        "Hard-link shards that do not change, where the file system allows it: no bytes are "
        "copied, but SRC and DST then share them.",
        recorded="never",
    )
    max_shard_size: int | None = shard_size()

    @property
    def links(self) -> bool:
        """Whether shards that do not change become hard links."""
        return self.link


@dataclass(frozen=True)
class Move:
    """A fused set that lay in several shards of the source.

    Attributes:
        fused: the set.
        sources: the source's shards that hold parts of it.
        target: the output's shard that holds all of it.
        nbytes: bytes of tensor data that leave the shard where most of it was.
    """

    fused: FusedSet
    sources: tuple[str, ...]
    target: str
    nbytes: int


@dataclass(frozen=True)
class ReindexReport:
    """What reindexing does.

    Attributes:
        fused_sets: sets found.
        moves: those that were spread over several shards.
        shards: shards of the output.
        shards_rewritten: those of them that no source file equals byte for byte.
    """

    fused_sets: int
    moves: tuple[Move, ...]
    shards: int
    shards_rewritten: int

    @property
    def bytes_moved(self) -> int:
        """Bytes of tensor data brought together."""
        return sum(move.nbytes for move in self.moves)

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> ReindexReport:  # noqa: ARG002
        """Itself: nothing is computed, so nothing was measured."""
        return self

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        moved = f"{len(self.moves)}, {format_bytes(self.bytes_moved)}" if self.moves else "none"
        return [
            ("fused sets", str(self.fused_sets)),
            ("sets moved", moved),
            ("shards rewritten", f"{self.shards_rewritten} of {self.shards}"),
        ]

    def items(self) -> list[str]:
        """Where each moved set goes."""
        return [f"{move.fused.name} -> {move.target}" for move in self.moves]

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "fused_sets": self.fused_sets,
            "sets_moved": len(self.moves),
            "bytes_moved": self.bytes_moved,
            "shards": self.shards,
            "shards_rewritten": self.shards_rewritten,
            "moves": [
                {
                    "set": move.fused.name,
                    "from": list(move.sources),
                    "to": move.target,
                    "bytes": move.nbytes,
                }
                for move in self.moves
            ],
        }


def reindex(checkpoint: Checkpoint, options: ReindexOptions) -> tuple[Checkpoint, ReindexReport]:
    """Put every fused set into one shard.

    Without a size of shards, sets go where most of their bytes are and other shards stay.
    """
    if options.max_shard_size is None:
        result = gather_fused_sets(checkpoint)
    else:
        result = cut_to_size(checkpoint, options.max_shard_size)
    step = {"use": "reindex", **options.recipe}
    return replace(result, steps=(*checkpoint.steps, step)), _report(checkpoint, result)


def _report(before: Checkpoint, after: Checkpoint) -> ReindexReport:
    sizes = {name: tensor.spec.nbytes for name, tensor in before.tensors()}
    old_home, new_home = before.home(), after.home()
    sets = fused_sets(sizes)
    moves = []
    for fused in sets:
        held: Counter[str] = Counter()
        for name in fused.tensors:
            held[old_home[name]] += sizes[name]
        if len(held) > 1:
            nbytes = held.total() - max(held.values())
            moves.append(Move(fused, tuple(held), new_home[fused.tensors[0]], nbytes))
    rewritten = sum(after.source_of(shard) is None for shard in after.shards)
    return ReindexReport(len(sets), tuple(moves), len(after.shards), rewritten)
