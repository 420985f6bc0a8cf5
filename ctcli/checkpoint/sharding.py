"""Which shard a tensor belongs in: gathering fused sets, cutting to a size, naming shards."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ctcli.checkpoint.value import INDEX_SUFFIX, Checkpoint, Shard
from ctcli.models.fused import fused_sets

_NUMBERS = re.compile("([0-9]+)")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]+)-of-(?P<total>[0-9]+)\.safetensors")


def natural_key(name: str) -> list[Any]:
    """Sort key that puts layer 2 before layer 10."""
    parts: list[Any] = _NUMBERS.split(name)
    # Without leading zeros, a number with fewer digits is less.
    parts[1::2] = [(len(digits), digits) for part in parts[1::2] for digits in [part.lstrip("0")]]
    return parts


def is_numbered(name: str) -> bool:
    """Whether a weights file is named as one of several (`model-00001-of-00003.safetensors`)."""
    return _NUMBERED.fullmatch(name) is not None


def gather_fused_sets(checkpoint: Checkpoint) -> Checkpoint:
    """Put every fused set into the shard that already holds most of its bytes.

    Shards keep their names unless one is left empty: it disappears and the rest are renumbered.
    """
    shards = checkpoint.shards
    sizes = {name: tensor.spec.nbytes for name, tensor in checkpoint.tensors()}
    home = {name: i for i, shard in enumerate(shards) for name in shard.tensors}
    for fused in fused_sets(home):
        held: Counter[int] = Counter()
        for name in fused.tensors:
            held[home[name]] += sizes[name]
        target = max(held, key=lambda shard: (held[shard], -shard))
        home.update(dict.fromkeys(fused.tensors, target))
    names = _renumbered([shard.name for shard in shards], keep=set(home.values()))
    return replace(checkpoint, shards=_rehoused(shards, home, names))


def with_tensors(checkpoint: Checkpoint, shards: Sequence[Shard]) -> Checkpoint:
    """The checkpoint with other tensors in its shards; those without any disappear.

    Shards keep their names unless one disappears: then the rest are renumbered.
    """
    keep = {i for i, shard in enumerate(shards) if shard.tensors}
    names = _renumbered([shard.name for shard in shards], keep)
    return replace(
        checkpoint, shards=tuple(replace(shards[i], name=names[i]) for i in sorted(keep))
    )


def cut_to_size(checkpoint: Checkpoint, max_bytes: int) -> Checkpoint:
    """Lay the checkpoint out anew: natural order, shards of at most `max_bytes` tensor bytes.

    A fused set is never split, nor is a module (a weight and its scales); one that is larger than
    `max_bytes` gets a shard of its own.
    """
    tensors = dict(checkpoint.tensors())
    shards: list[list[str]] = []
    room = 0
    for unit in _inseparable(sorted(tensors, key=natural_key)):
        nbytes = sum(tensors[name].spec.nbytes for name in unit)
        if not shards or nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1] += unit
        room -= nbytes
    stem = checkpoint.index_name.removesuffix(INDEX_SUFFIX)
    one = len(shards) == 1
    names = [f"{stem}.safetensors"] if one else _series_names(stem, len(shards))
    metadata = {k: v for s in reversed(checkpoint.shards) for k, v in s.metadata.items()}
    cut = tuple(
        Shard(name, {tensor: tensors[tensor] for tensor in members}, metadata)
        for name, members in zip(names, shards, strict=True)
    )
    return replace(checkpoint, shards=cut)


def _inseparable(names: Sequence[str]) -> list[list[str]]:
    unit_of = {
        name: (fused.parent, fused.members) for fused in fused_sets(names) for name in fused.tensors
    }
    units: dict[object, list[str]] = defaultdict(list)
    for name in names:
        units[unit_of.get(name) or name.rpartition(".")[0] or name].append(name)
    return list(units.values())


def _rehoused(
    shards: Sequence[Shard], home: dict[str, int], names: dict[int, str]
) -> tuple[Shard, ...]:
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    contents: dict[int, list[str]] = defaultdict(list)
    for name, i in home.items():
        contents[i].append(name)
    return tuple(
        Shard(names[i], {name: tensors[name] for name in contents[i]}, shards[i].metadata)
        for i in sorted(contents)
    )


def _renumbered(names: Sequence[str], keep: set[int]) -> dict[int, str]:
    """New names of the shards that stay, by position."""
    kept = {i: names[i] for i in sorted(keep)}
    if len(kept) == len(names):
        return kept
    series: dict[str, list[int]] = defaultdict(list)
    for i, name in kept.items():
        if match := _NUMBERED.fullmatch(name):
            series[match["stem"]].append(i)
    for stem, members in series.items():
        kept |= zip(members, _series_names(stem, len(members)), strict=True)
    if len(kept) == 1 and series:
        return dict.fromkeys(kept, f"{next(iter(series))}.safetensors")
    return kept


def _series_names(stem: str, total: int) -> list[str]:
    return [f"{stem}-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
