"""`quantization_config`: what servers read about a quantized checkpoint.

Two groups never match the same module, whatever order a reader takes them in: vLLM tries names and
expressions before classes, and JSON writers sort the groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ctcli.checkpoint.value import Modules
from ctcli.patterns import cover
from ctcli.rewrites.quantizing.selection import Selection
from ctcli.schemes.arguments import QuantizationArgs, Scheme

# The release of compressed-tensors whose formats these are.
VERSION = "0.19.0"
_FP8_KV_CACHE = QuantizationArgs(8, "float", "tensor")


def quantization_config(
    selection: Selection, modules: Modules, unlisted: Iterable[str], kv_cache: bool
) -> dict[str, Any]:
    """The config for a selection.

    Args:
        selection: what is quantized, and what is left alone.
        modules: all of these.
        unlisted: linears of the model that have no weight of their own in the checkpoint and that
            a reader must not take for quantized (a tied lm_head).
        kv_cache: whether the checkpoint holds the scales of an FP8 key-value cache.
    """
    groups = _groups(selection, modules)
    formats = {scheme.format for scheme, _ in groups}
    kept = [module for module in selection.kept if modules[module].kind != "embedding"]
    return {
        "config_groups": {
            name: scheme.to_config(targets)
            for name, (scheme, targets) in zip(_names(groups), groups, strict=True)
        },
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": sorted({*kept, *unlisted}),
        "kv_cache_scheme": _FP8_KV_CACHE.to_config() if kv_cache else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": VERSION,
    }


def _groups(selection: Selection, modules: Modules) -> list[tuple[Scheme, list[str]]]:
    """Each scheme with its targets; heads and embeddings, which are no class Linear, by name."""
    members: dict[tuple[Scheme, str], list[str]] = {}
    for module, scheme in selection.schemes.items():
        special = module if modules[module].kind in ("embedding", "head") else ""
        members.setdefault((scheme, special), []).append(module)
    if len(members) == 1 and not any(special for _, special in members):
        return [(scheme, ["Linear"]) for scheme, _ in members]
    every = {*selection.schemes, *selection.kept}
    return [
        (scheme, cover(names, every.difference(names))) for (scheme, _), names in members.items()
    ]


def _names(groups: Iterable[tuple[Scheme, list[str]]]) -> list[str]:
    names: list[str] = []
    for scheme, _ in groups:
        taken = sum(name.partition("#")[0] == scheme.name for name in names)
        names.append(f"{scheme.name}#{taken + 1}" if taken else scheme.name)
    return names
