"""`quantization_config`: what servers read about a quantized checkpoint.

Two groups never match the same module, whatever order a reader takes them in: vLLM tries names and
expressions before classes, and JSON writers sort the groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from ctcli.errors import CtcliError
from ctcli.models.protected import is_embedding
from ctcli.patterns import cover
from ctcli.schemes.arguments import QuantizationArgs, Scheme

# The releases of compressed-tensors whose spellings there are.
Release = Literal["0.19", "0.20"]
VERSIONS: Mapping[Release, str] = {"0.19": "0.19.0", "0.20": "0.20.1"}
_NEWER = "mxfp6-pack-quantized"
RELEASE_HINT = "Give --ct-version 0.20, and serve it with a release that reads that."
_FP8_KV_CACHE = QuantizationArgs(8, "float", "tensor")


def quantization_config(
    schemes: Mapping[str, Scheme],
    left_alone: Iterable[str],
    unlisted: Iterable[str],
    *,
    named: Collection[str],
    kv_cache: bool,
    release: Release,
) -> dict[str, Any]:
    """The config for a checkpoint.

    Args:
        schemes: of the modules that are quantized.
        left_alone: the linears and embeddings that are not.
        unlisted: linears of the model that have no weight of their own in the checkpoint and that
            a reader must not take for quantized (a tied lm_head).
        named: heads and embeddings, which are no class Linear.
        kv_cache: whether the checkpoint holds the scales of an FP8 key-value cache.
        release: of compressed-tensors: from 0.20 on, arguments that say nothing are left out.

    Raises:
        CtcliError: the release does not know a format.
    """
    kept = [*left_alone]
    groups = _groups(schemes, kept, named)
    formats = {scheme.format for scheme, _ in groups}
    if problem := release_problem(formats, release):
        raise CtcliError(problem, RELEASE_HINT)
    linears = [module for module in kept if not is_embedding(module)]
    spelled = {
        name: scheme.to_config(targets)
        for name, (scheme, targets) in zip(_names(groups), groups, strict=True)
    }
    if release == "0.20":
        spelled = {name: _without_nulls(group) for name, group in spelled.items()}
    return {
        "config_groups": spelled,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": sorted({*linears, *unlisted}),
        "kv_cache_scheme": _FP8_KV_CACHE.to_config() if kv_cache else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": VERSIONS[release],
    }


def release_problem(formats: Collection[str], release: Release) -> str:
    """Why a release of compressed-tensors cannot say these formats; empty: it can."""
    if release == "0.19" and _NEWER in formats:
        return f"{_NEWER}: compressed-tensors 0.19 has no such format."
    return ""


def _without_nulls(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group whose arguments do not say what they leave open; `group_size` is always told."""
    return {
        key: {k: v for k, v in value.items() if v not in (None, {}) or k == "group_size"}
        if isinstance(value, Mapping)
        else value
        for key, value in group.items()
    }


def _groups(
    schemes: Mapping[str, Scheme], kept: Collection[str], named: Collection[str]
) -> list[tuple[Scheme, list[str]]]:
    """Each scheme with its targets; what is no class Linear by name."""
    members: dict[tuple[Scheme, str], list[str]] = {}
    for module, scheme in schemes.items():
        special = module if module in named else ""
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
