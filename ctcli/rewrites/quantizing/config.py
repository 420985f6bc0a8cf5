"""`quantization_config`: what servers read about a quantized checkpoint.

Two groups never match the same module, whatever order a reader takes them in: vLLM tries names and
expressions before classes, and JSON writers sort the groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ctcli.models.protected import kind_of
from ctcli.patterns import cover
from ctcli.schemes.arguments import QuantizationArgs, Scheme

# The release of compressed-tensors whose formats these are.
VERSION = "0.19.0"
_FP8_KV_CACHE = QuantizationArgs(8, "float", "tensor")


def quantization_config(
    schemes: Mapping[str, Scheme],
    left_alone: Iterable[str],
    unlisted: Iterable[str],
    *,
    kv_cache: bool,
) -> dict[str, Any]:
    """The config for a checkpoint.

    Args:
        schemes: of the modules that are quantized.
        left_alone: the linears and embeddings that are not.
        unlisted: linears of the model that have no weight of their own in the checkpoint and that
            a reader must not take for quantized (a tied lm_head).
        kv_cache: whether the checkpoint holds the scales of an FP8 key-value cache.
    """
    kept = {module: kind_of(module) for module in left_alone}
    groups = _groups(schemes, kept)
    formats = {scheme.format for scheme, _ in groups}
    linears = [module for module, kind in kept.items() if kind != "embedding"]
    return {
        "config_groups": {
            name: scheme.to_config(targets)
            for name, (scheme, targets) in zip(_names(groups), groups, strict=True)
        },
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": sorted({*linears, *unlisted}),
        "kv_cache_scheme": _FP8_KV_CACHE.to_config() if kv_cache else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": VERSION,
    }


def _groups(schemes: Mapping[str, Scheme], kept: Collection[str]) -> list[tuple[Scheme, list[str]]]:
    """Each scheme with its targets; heads and embeddings, which are no class Linear, by name."""
    members: dict[tuple[Scheme, str], list[str]] = {}
    for module, scheme in schemes.items():
        special = module if kind_of(module) in ("embedding", "head") else ""
        members.setdefault((scheme, special), []).append(module)
    if len(members) == 1 and not any(special for _, special in members):
        return [(scheme, ["Linear"]) for scheme, _ in members]
    every = {*schemes, *kept}
    return [
        (scheme, cover(modules, every.difference(modules)))
        for (scheme, _), modules in members.items()
    ]


def _names(groups: Iterable[tuple[Scheme, list[str]]]) -> list[str]:
    names: list[str] = []
    for scheme, _ in groups:
        taken = sum(name.partition("#")[0] == scheme.name for name in names)
        names.append(f"{scheme.name}#{taken + 1}" if taken else scheme.name)
    return names
