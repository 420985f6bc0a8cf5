"""From config.json and tensor names to the architecture at hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture, BiasSwitch, NormRole, Operation
from ctcli.models.checking import Shapes, check
from ctcli.models.config import is_nested, table, text_config
from ctcli.models.facts import SourceFacts
from ctcli.models.families import Family, family_of, model_type
from ctcli.models.layers import layer_of
from ctcli.models.protected import towers
from ctcli.models.views import seen

# Saved by old versions of transformers; computed anew by every reader.
_BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)")
# Tensors outside the language model proper: where they stand to its residual stream.
_Beside = Literal["tower", "prediction"]
_BESIDE: Mapping[_Beside, tuple[tuple[Operation, ...], str]] = {
    "tower": (
        ("center", "R1"),
        "it belongs to a tower whose features enter the residual stream as they are",
    ),
    "prediction": (
        ("fuse-norms", "center", "R1"),
        "it belongs to a layer for multi-token prediction, which reads the stream behind the "
        "final norm",
    ),
}


def resolve(config: Mapping[str, Any], shapes: Shapes) -> Architecture:
    """The architecture of a checkpoint.

    Args:
        config: config.json.
        shapes: shape by tensor name, of the whole checkpoint.

    Raises:
        CtcliError: the model type is unknown, config.json lacks a size, or tensors are missing,
            misshapen or unknown; every one is named.
    """
    name, family = model_type(config), family_of(config)
    root, head = _place(name, family, shapes)
    base = root + family.base
    layers = f"{base}{family.layers}."
    as_linears = seen(family, layers, shapes)
    source = SourceFacts(text_config(config), as_linears.shapes)
    beside = _beside(source.shapes, layers, _layers(family, source))
    found = _assembled(name, family, base, head, source)
    found = replace(
        found,
        features=_features(family, source.shapes),
        tied=not source.has(head) and _may_be_tied(config, family),
        head_bias=family.head_bias,
        views=as_linears.views,
        transposed=as_linears.transposed,
    )
    refused = {**refusals(found, source.text, beside), **dict(family.refusals)}
    found = replace(found, refusals=refused)
    own = {
        tensor: shape
        for tensor, shape in source.shapes.items()
        if tensor not in beside or tensor.rpartition(".")[0] in found.features
    }
    layer = rf"{re.escape(layers)}[0-9]+\."
    others = [layer + other for other in family.others]
    others += [re.escape(base) + other for other in family.outer]
    check(found, own, [_BUFFERS, *(re.compile(other) for other in others)])
    return found


def _layers(family: Family, source: SourceFacts) -> int:
    """How many layers the model has: by its own key, or by the list of their kinds."""
    kinds = source.text.get("layers_block_type")
    if not source.optional(family.count) and isinstance(kinds, list):
        return len(kinds)
    return source.number(family.count)


def _assembled(
    name: str, family: Family, base: str, head: str, source: SourceFacts
) -> Architecture:
    """All parts of all layers, and what is around them; nothing is checked yet."""
    names = (f"{base}{family.layers}.{i}." for i in range(_layers(family, source)))
    layers = [layer_of(family, name, source) for name in names]
    embedding, project_in, project_out = (
        base + part for part in (family.embedding, "project_in", "project_out")
    )
    projected = source.has(project_in)
    linears = [part for layer in layers for part in layer.linears]
    switch = _bias_switch(family, source, linears)
    norms = [norm for layer in layers for norm in layer.norms]
    kept = [norm for layer in layers for norm in layer.kept_norms]
    if family.final_norm:
        norms.append(NormRole(base + family.final_norm, (project_out if projected else head,)))
    if family.affine_switch and source.text.get(family.affine_switch) is False:
        norms, kept = [], []
    return Architecture(
        family=name,
        hidden_size=source.number("hidden_size"),
        norm_kind=family.norm_kind,
        gain_offset=family.gain_offset,
        norms=tuple(with_bias(norm, source.shapes, switch) for norm in norms),
        kept_norms=tuple(kept),
        token_embedding=embedding,
        embeddings=(
            *([] if projected else [embedding]),
            *([base + family.positions] if family.positions else []),
        ),
        project_in=project_in if projected else None,
        attentions=tuple(role for layer in layers for role in layer.attentions),
        mixers=tuple(mixer for layer in layers for mixer in layer.mixers),
        mlps=tuple(mlp for layer in layers for mlp in layer.mlps),
        routers=tuple(router for layer in layers for router in layer.routers),
        project_out=project_out if projected else None,
        lm_head=head,
        tied=False,
        bias_switch=switch,
        refusals={},
    )


def _place(name: str, family: Family, shapes: Shapes) -> tuple[str, str]:
    """The language model's prefix and its head's name."""
    embedding = f"{family.base}{family.embedding}.weight"
    places = [
        (f"{family.root}.", family.head),
        (f"{family.root}.language_model.", family.head),
        (f"language_model.{family.root}.", f"language_model.{family.head}"),
    ]
    if family.root != "model":  # as the class without a head saves it
        places.append(("", family.head))
    for root, head in places:
        if root + embedding in shapes:
            return root, head
    raise CtcliError(
        f"{name}: none of {', '.join(root + embedding for root, _ in places)} is there.",
        "Check that the checkpoint is complete, and that it is a causal language model's.",
    )


def _beside(shapes: Shapes, layers: str, count: int) -> dict[str, _Beside]:
    """Tensors of towers, and of layers beyond the model's own."""
    found: dict[str, _Beside] = {}
    in_towers = towers(shapes)
    for name in shapes:
        number = name.removeprefix(layers).partition(".")[0]
        is_layer = number.isdecimal() and number.isascii() and name.startswith(layers)
        if is_layer and int(number) >= count:
            found[name] = "prediction"
        elif name in in_towers:
            found[name] = "tower"
    return found


def _features(family: Family, shapes: Shapes) -> tuple[str, ...]:
    """The linears that make features of a tower's output."""
    modules = (name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))
    made = re.compile("|".join(family.features) or "(?!)")
    return tuple(module for module in modules if made.fullmatch(module))


def _may_be_tied(config: Mapping[str, Any], family: Family) -> bool:
    """Whether config.json, or the default of its class, lets the head be the embedding.

    Classes that wrap a language model have defaults of their own, most of them true.
    """
    return bool(config.get("tie_word_embeddings", is_nested(config) or family.tied))


def _bias_switch(family: Family, source: SourceFacts, linears: Iterable[str]) -> BiasSwitch | None:
    """The switch, if config.json has it off."""
    if family.bias_switch is None or source.text.get(family.bias_switch) is not False:
        return None
    missing = tuple(name for name in linears if f"{name}.bias" not in source.shapes)
    return BiasSwitch(family.bias_switch, missing)


def with_bias(norm: NormRole, shapes: Shapes, switch: BiasSwitch | None) -> NormRole:
    """The same norm, knowing whether it has a bias and where that can go."""
    if f"{norm.module}.bias" not in shapes:
        return norm
    switched = switch.linears if switch else ()
    able = all(f"{name}.bias" in shapes or name in switched for name in norm.linears)
    return replace(norm, bias="linears" if able else "norm")


def refusals(
    found: Architecture, text: Mapping[str, Any], beside: Mapping[str, _Beside]
) -> dict[Operation, str]:
    """What is not exact, whatever the family.

    Args:
        found: the architecture.
        text: the language model's config.
        beside: tensors outside the language model proper.
    """
    refused: dict[Operation, str] = {}
    for name, kind in beside.items():
        if kind == "tower" and found.features:
            continue
        operations, reason = _BESIDE[kind]
        refused = {**dict.fromkeys(operations, f"{name}: {reason}"), **refused}
    if found.kept_norms:
        refused["R1"] = (
            f"{found.kept_norms[0]} scales what a block writes before it joins the residual "
            "stream, and such a gain does not commute with a rotation"
        )
        refused["center"] = f"{found.kept_norms[0]} normalises what a block writes"
    if found.norm_kind == "rms":
        refused["center"] = "RMSNorm does not subtract the mean, so that it matters to the model"
    if any(mlp.output in found.transposed for mlp in found.mlps) or any(
        f"{mlp.output}.weight" in found.views for mlp in found.mlps
    ):
        refused["R4"] = "MLPs are stored together or transposed, where servers rotate no inputs"
    if text.get("num_kv_shared_layers"):
        refused["R2"] = "the last layers take the values of others"
    if text.get("attention_k_eq_v"):
        refused["R2"] = "keys are values, too"
    if text.get("clip_qkv") or table(text.get("attn_config")).get("clip_qkv"):
        reason = "clip_qkv cuts queries, keys and values off at a bound, one by one"
        refused |= {"R2": reason, "R3": reason}
    return refused
