"""Tensors by name: which of them, in what order, and what values they hold."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ctcli.checkpoint.sharding import natural_key
from ctcli.checkpoint.value import Checkpoint
from ctcli.console import ResultSection
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.ops.dtypes import DTYPES, FLOATS
from ctcli.patterns import check_patterns, matches
from ctcli.units import Advance, counted, format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Order = Literal["name", "size", "dtype", "shard"]
_BLOCK = 16 * 2**20  # bytes that are looked at together
_INTEGERS = {"BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4"}
_INTEGERS |= {"I32": "i4", "U64": "u8", "I64": "i8"}


@dataclass(frozen=True)
class Stats:
    """What values a tensor holds.

    Attributes:
        least: of the finite ones.
        largest: of the finite ones.
        rms: root of the mean square of the finite ones.
        zeros: how many are zero.
        nonfinite: how many are NaN or infinite.
    """

    least: float
    largest: float
    rms: float
    zeros: int
    nonfinite: int


@dataclass(frozen=True)
class Listed:
    """A tensor, the shard that holds it, and what it holds if that was asked for."""

    name: str
    spec: TensorSpec
    shard: str
    stats: Stats | None = None


def list_tensors(checkpoint: Checkpoint, pattern: str | None, order: Order) -> list[Listed]:
    """The tensors whose names a pattern matches; without one, all.

    Args:
        checkpoint: whose.
        pattern: a name, a part of one, one with `*` and `?`, or `re:` and an expression that
            matches its start.
        order: by what; equal ones by name, layer 2 before layer 10.

    Raises:
        CtcliError: it is no expression, or matches none.
    """
    found = [
        Listed(name, tensor.spec, shard.name)
        for shard in checkpoint.shards
        for name, tensor in shard.tensors.items()
    ]
    if pattern is not None:
        names = _matching(pattern, [tensor.name for tensor in found])
        found = [tensor for tensor in found if tensor.name in names]
    found.sort(key=lambda tensor: natural_key(tensor.name))
    if order == "size":
        found.sort(key=lambda tensor: -tensor.spec.nbytes)
    elif order != "name":
        found.sort(key=lambda t: t.spec.dtype if order == "dtype" else natural_key(t.shard))
    return found


def _matching(pattern: str, names: Sequence[str]) -> set[str]:
    if pattern.startswith("re:"):
        check_patterns([pattern], names, kind="tensor")
        return {name for name in names if matches(pattern, name)}
    if pattern in names:
        return {pattern}
    glob = pattern if any(char in pattern for char in "*?[") else f"*{pattern}*"
    if found := {name for name in names if fnmatch.fnmatchcase(name, glob)}:
        return found
    check_patterns([pattern], names, kind="tensor")
    return set()


def with_stats(checkpoint: Checkpoint, listed: Sequence[Listed], advance: Advance) -> list[Listed]:
    """The same with what they hold, reading each once, in blocks.

    Args:
        checkpoint: whose they are.
        listed: some of its tensors.
        advance: told of bytes that were read.

    Raises:
        CtcliError: something cannot be read.
    """
    stored = {name: tensor for shard in checkpoint.shards for name, tensor in shard.tensors.items()}
    found = []
    for each in listed:
        tensor = stored[each.name]
        stats = _stats(tensor, advance) if isinstance(tensor, Stored) else None
        found.append(Listed(each.name, each.spec, each.shard, stats))
    return found


def _stats(tensor: Stored, advance: Advance) -> Stats | None:
    """What a tensor holds; None for elements that share bytes, or have no order."""
    import numpy as np

    least, largest, energy, zeros, finite, count = math.inf, -math.inf, 0.0, 0, 0, 0
    for values in _values(tensor, advance):
        if values is None:
            return None
        is_finite = np.isfinite(values)
        kept = values[is_finite]
        count, finite = count + values.size, finite + kept.size
        zeros += int(np.count_nonzero(kept == 0))
        if kept.size:
            least, largest = min(least, float(kept.min())), max(largest, float(kept.max()))
            energy += float(np.dot(kept, kept))
    if not finite:
        least = largest = math.nan
    return Stats(least, largest, math.sqrt(energy / max(finite, 1)), zeros, count - finite)


def _values(tensor: Stored, advance: Advance) -> Iterator[NDArray[np.float64] | None]:
    """The elements as float64, block by block; None where they cannot be told."""
    import numpy as np

    from ctcli.ops.bits import to_floats

    spec, tag = tensor.spec, tensor.spec.dtype
    for start in range(0, spec.nbytes, _BLOCK):
        block = tensor.file.read(tensor.start + start, min(_BLOCK, spec.nbytes - start))
        advance(len(block))
        if tag in FLOATS:
            bits = np.frombuffer(block, f"u{DTYPES[tag].nbytes}")
            yield to_floats(bits, tag, np.float64).astype(np.float64, copy=False)
        elif tag in _INTEGERS:
            yield np.frombuffer(block, f"<{_INTEGERS[tag]}").astype(np.float64)
        elif tag == "F8_E4M3":
            from ctcli.ops.decoding import e4m3_elements

            yield e4m3_elements().table[np.frombuffer(block, "u1")].astype(np.float64)
        else:
            yield None


def listing(tensors: Sequence[Listed]) -> ResultSection:
    """A line for each tensor."""
    nbytes = sum(tensor.spec.nbytes for tensor in tensors)
    has_stats = any(tensor.stats for tensor in tensors)
    lines = [
        (
            tensor.name,
            tensor.spec.dtype,
            str(list(tensor.spec.shape)),
            format_bytes(tensor.spec.nbytes),
            *(_told(tensor.stats) if has_stats else ()),
            tensor.shard,
        )
        for tensor in tensors
    ]
    heading = f"{counted(len(tensors), 'tensor')}, {format_bytes(nbytes)}"
    return ResultSection(heading, lines, whole=True)


def _told(stats: Stats | None) -> tuple[str, ...]:
    if stats is None:
        return "", "", "", ""
    odd = f"{counted(stats.nonfinite, 'value')} not finite" if stats.nonfinite else ""
    zeros = f"{counted(stats.zeros, 'zero')}" if stats.zeros else ""
    least, largest = f"{stats.least:.4g}", f"{stats.largest:.4g}"
    return f"{least} to {largest}", f"rms {stats.rms:.4g}", zeros, odd


def listed_data(tensors: Sequence[Listed]) -> list[dict[str, Any]]:
    """Tensors, for programs."""
    return [
        {
            "name": tensor.name,
            "dtype": tensor.spec.dtype,
            "shape": list(tensor.spec.shape),
            "shard": tensor.shard,
            "bytes": tensor.spec.nbytes,
            **({"stats": vars(tensor.stats)} if tensor.stats else {}),
        }
        for tensor in tensors
    ]
