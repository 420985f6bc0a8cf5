"""From a user's mapping and tensor names to the architecture at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ctcli.errors import CtcliError
from ctcli.models.architecture import (
    Architecture,
    AttentionRole,
    HeadRows,
    MlpRole,
    NormRole,
)
from ctcli.models.checking import Shapes, check
from ctcli.models.config import text_config
from ctcli.models.facts import SourceFacts
from ctcli.models.families import model_type
from ctcli.models.mapping import ArchitectureMapping
from ctcli.models.resolve import refusals, with_bias
from ctcli.patterns import check_patterns, matches

# Where config.json may say how many heads of queries, keys and values there are.
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")


def resolve_mapping(
    mapping: ArchitectureMapping, config: Mapping[str, Any], shapes: Shapes
) -> Architecture:
    """The architecture of a checkpoint that a user describes.

    Args:
        mapping: the description.
        config: config.json.
        shapes: shape by tensor name, of the whole checkpoint.

    Raises:
        CtcliError: a pattern matches nothing, a part is not complete, or tensors are missing,
            misshapen or in no part; every one is named.
    """
    own = {name: shape for name, shape in shapes.items() if not _ignored(name, mapping.ignore)}
    modules = sorted({_module(name) for name in own}, key=_order)
    tied = mapping.lm_head not in modules and config.get("tie_word_embeddings") is not False
    named = [*modules, mapping.lm_head] if tied else modules
    _check_names(mapping, named, {_module(name) for name in shapes})
    source = SourceFacts(text_config(config), own)
    embedding = _one(mapping.embedding, modules, "embedding")
    mlps, routers = _mlps(mapping, modules)
    found = Architecture(
        family=model_type(config),
        hidden_size=source.number("hidden_size"),
        norm_kind=mapping.norm_kind,
        gain_offset=mapping.gain_offset,
        norms=tuple(with_bias(norm, own, None) for norm in _norms(mapping, named)),
        kept_norms=(),
        token_embedding=embedding,
        embeddings=(embedding,),
        project_in=None,
        attentions=_attentions(mapping, modules, source),
        mlps=mlps,
        routers=routers,
        project_out=None,
        lm_head=_one(mapping.lm_head, named, "lm_head"),
        tied=tied,
        bias_switch=None,
        refusals={},
    )
    _check_fed(found)
    check(found, own, [])
    return replace(found, refusals=refusals(found, source.text, {}))


def _module(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in name.split("."))


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(p, name) or matches(p, _module(name)) for p in patterns)


def _matching(patterns: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The modules that patterns name: pattern by pattern, once each."""
    names = list(modules)
    return list(dict.fromkeys(name for p in patterns for name in names if matches(p, name)))


def _norms(mapping: ArchitectureMapping, named: Sequence[str]) -> list[NormRole]:
    """Every norm with its readers, in the order of the layers."""
    found = [
        NormRole(norm, tuple(_scoped(pair.linears, norm, named)))
        for pair in mapping.norms
        for norm in _matching((pair.norm,), named)
    ]
    return sorted(found, key=lambda norm: _order(norm.module))


def _scoped(patterns: Iterable[str], norm: str, modules: Iterable[str]) -> list[str]:
    """What patterns name in the layer of a norm: everything, for a norm outside all layers."""
    parts = norm.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    scope = ".".join(parts[: numbers[-1] + 1]) + "." if numbers else ""
    return _matching(patterns, (name for name in modules if name.startswith(scope)))


def _check_names(
    mapping: ArchitectureMapping, modules: Collection[str], everything: Collection[str]
) -> None:
    """Every pattern matches something, and `ignore` matches something in the whole checkpoint."""
    parents = {name.rpartition(".")[0] for name in modules}
    check_patterns((mapping.attn,), parents)
    check_patterns(mapping.ignore, everything)
    patterns = [mapping.embedding, mapping.attn_q, mapping.attn_k, mapping.attn_v, mapping.attn_o]
    patterns += [*mapping.mlp_in, *mapping.mlp_out, mapping.lm_head]
    patterns += [name for pair in mapping.norms for name in (pair.norm, *pair.linears)]
    check_patterns(dict.fromkeys(patterns), modules)


def _one(pattern: str, modules: Iterable[str], key: str) -> str:
    found = _matching((pattern,), modules)
    if len(found) != 1:
        raise CtcliError(
            f"mapping: {key} = {pattern!r} names {len(found)} modules "
            f"({', '.join(found[:3]) or 'none'}), not one.",
            "Give the module's full name.",
        )
    return found[0]


def _attentions(
    mapping: ArchitectureMapping, modules: Sequence[str], source: SourceFacts
) -> tuple[AttentionRole, ...]:
    size = mapping.attn_head_dim or source.head_dim
    parents = dict.fromkeys(name.rpartition(".")[0] for name in modules)
    roles = []
    for module in _matching((mapping.attn,), parents):
        below = [name for name in modules if name.startswith(f"{module}.")]
        q, k, v, o = (
            _one(getattr(mapping, key), below, f"below {module}, {key}")
            for key in ("attn_q", "attn_k", "attn_v", "attn_o")
        )
        if len({q, k, v}) < 3:
            raise CtcliError(
                f"mapping: {q}: queries, keys and values come from one linear.",
                "Fused queries, keys and values cannot be described in a mapping file.",
            )
        queries, keys, values = (
            HeadRows(name, source.optional(key) or source.size(name, 0) // size, 0, size, size)
            for name, key in zip((q, k, v), _HEADS, strict=True)
        )
        roles.append(AttentionRole(module, (q, k, v), queries, keys, values, o))
    return tuple(roles)


def _mlps(
    mapping: ArchitectureMapping, modules: Sequence[str]
) -> tuple[tuple[MlpRole, ...], tuple[str, ...]]:
    """MLPs by the parents of their outputs; inputs elsewhere are routers."""
    outputs = {name.rpartition(".")[0]: name for name in _matching(mapping.mlp_out, modules)}
    inputs: dict[str, list[str]] = {parent: [] for parent in outputs}
    routers: list[str] = []
    for name in _matching(mapping.mlp_in, modules):
        inputs.get(name.rpartition(".")[0], routers).append(name)
    found = [MlpRole(m, tuple(inputs[m]), output) for m, output in outputs.items()]
    return tuple(found), tuple(sorted(routers, key=_order))


def _check_fed(architecture: Architecture) -> None:
    """Every reader of the stream reads it through one norm: fusing must reach all of them."""
    fed = Counter(linear for norm in architecture.norms for linear in norm.linears)
    problems = [
        f"mapping: {name} reads the residual stream, and {fed[name] or 'no'} norms feed it."
        for name in architecture.readers
        if fed[name] != 1
    ]
    problems += [
        f"mapping: {name} is behind a norm, but in none of attn_q, attn_k, attn_v, mlp_in, lm_head."
        for name in fed.keys() - {*architecture.readers}
    ]
    if problems:
        raise CtcliError(problems, "List each linear that reads the stream beside its norm.")
