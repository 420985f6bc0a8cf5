"""What llama2.c's files cannot hold: every reason, so that all can be told at once."""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator

from ctcli.checkpoint.sharding import natural_key
from ctcli.models.llama import SHAPES
from ctcli.models.llama_config import LlamaConfig
from ctcli.ops.dtypes import FLOATS
from ctcli.rewrites.exporting.source import Llama
from ctcli.storage.llama2c import NORM_EPS, ROPE_THETA, Header
from ctcli.units import format_bytes

_MAX_TABLE_BYTES = 256 * 1024 * 1024  # version 0's frequency tables are held in memory
# Tensors without a place in the format: the reason, and the pattern of their names.
_EXTRAS = {
    "a bias": re.compile(r".*\bbias"),
    "norms of queries and keys": re.compile(r".*\.(q|k|query|key)_(layer)?norm\..*"),
    "experts": re.compile(r".*(experts?|moe|router|feed_forward\.gate|mlp\.gate)\b.*"),
    "a layer beyond the number of layers, or an unknown tensor": re.compile(r"(?s:.*)"),
}


def obstacles(llama: Llama, header: Header) -> Iterator[str]:
    """Reasons that nothing helps against."""
    yield from llama.config.deviations
    yield from _size_obstacles(llama.config, header)
    yield from _tensor_obstacles(llama, header)


def _size_obstacles(config: LlamaConfig, header: Header) -> Iterator[str]:
    heads, kv_heads = header.n_heads, header.n_kv_heads
    if header.dim % heads or header.dim // heads != config.sizes["head_dim"]:
        yield (
            f"head_dim {config.sizes['head_dim']}: the readers take dim / n_heads, which is "
            f"{header.dim / heads:g}."
        )
    elif header.dim // heads % 2:
        yield f"head_dim {header.dim // heads}: RoPE rotates pairs, and it is odd."
    if heads % kv_heads:
        yield f"n_kv_heads {kv_heads} does not divide n_heads {heads}."
    window = config.sizes["sliding_window"]
    if 0 < window < header.max_seq_len:
        yield (
            f"sliding_window {window}: the readers attend to all of max_seq_len "
            f"{header.max_seq_len}; --max-seq-len {window} makes both the same."
        )
    for name, size in (("dim", header.dim), ("hidden_dim", header.hidden_dim)):
        if header.group_size and size % header.group_size:
            yield f"--group-size {header.group_size} does not divide {name} {size}."
    table_bytes = 4 * header.max_seq_len * (header.dim // heads)
    if header.version == 0 and table_bytes > _MAX_TABLE_BYTES:
        yield (
            f"max_seq_len {header.max_seq_len}: version 0 holds tables of it, which would have "
            f"{format_bytes(table_bytes)}; give a smaller --max-seq-len."
        )


def unread_constants(config: LlamaConfig) -> Iterator[str]:
    """Constants that the readers do not take from the file, where the model's are others."""
    if config.rope_theta != ROPE_THETA:
        yield f"rope_theta {config.rope_theta:g}: both readers compute RoPE with {ROPE_THETA:g}."
    if _as_float32(config.norm_eps) != _as_float32(NORM_EPS):
        yield f"rms_norm_eps {config.norm_eps:g}: both readers add {NORM_EPS:g}."


def _tensor_obstacles(llama: Llama, header: Header) -> Iterator[str]:
    naming, tensors = llama.naming, llama.tensors
    places = {naming.name(*place): place[0] for place in header.tensors() if place[0] in SHAPES}
    if missing := [name for name in places if name not in tensors]:
        yield f"missing: {_some(missing)}."
    for name in sorted(places.keys() & tensors.keys(), key=natural_key):
        spec, expected = tensors[name].spec, _shape_of(places[name], header)
        if spec.shape != expected:
            remark = _tensor_parallel(spec.shape, expected)
            yield f"{name}: its shape is {list(spec.shape)}, not {list(expected)}{remark}."
        if spec.dtype not in FLOATS:
            yield f"{name}: its dtype is {spec.dtype}, none of {', '.join(reversed(FLOATS))}."
    extras: dict[str, list[str]] = defaultdict(list)
    for name in tensors.keys() - places.keys() - {naming.once["classifier"]}:
        if not naming.ignored.fullmatch(name):
            reason = next(why for why, pattern in _EXTRAS.items() if pattern.fullmatch(name))
            extras[reason].append(name)
    for reason, names in sorted(extras.items()):
        first = min(names, key=natural_key)
        yield f"no place for {reason}: {_some([first, *names[1:]])}."


def _shape_of(name: str, header: Header) -> tuple[int, ...]:
    sizes = {
        "dim": header.dim,
        "kv_dim": header.dim // header.n_heads * header.n_kv_heads,
        "hidden_dim": header.hidden_dim,
        "vocab_size": header.vocab_size,
    }
    return tuple(sizes[size] for size in SHAPES[name])


def _tensor_parallel(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """A remark for a matrix of which an even part is there, by rows or by columns."""
    ratios = sorted(whole / max(1, part) for whole, part in zip(expected, found, strict=False))
    is_part = len(found) == len(expected) == 2 and ratios[0] == 1 and ratios[1] in (2, 4, 8, 16)
    return ": one part of a tensor parallel checkpoint?" if is_part else ""


def _as_float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more like it"
