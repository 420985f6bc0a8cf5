"""One layer of a declared family, as it is in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.errors import CtcliError
from ctcli.models.architecture import AttentionRole, HeadRows, MlpRole, NormRole
from ctcli.models.checking import Shapes
from ctcli.models.config import Section
from ctcli.models.families import Family, Mlp


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a checkpoint says of itself: the language model's config, and its tensors' shapes."""

    text: Mapping[str, Any]
    shapes: Shapes

    def number(self, key: str) -> int:
        """A size that config.json has to give.

        Raises:
            CtcliError: it does not.
        """
        return Section("config.json", self.text).needed_size(key)

    def optional(self, key: str) -> int | None:
        """The same for a size that config.json may leave out; None: it does."""
        return self.number(key) if self.text.get(key) else None

    @property
    def head_dim(self) -> int:
        """Size of an attention head, by its own key or by the width and number of heads."""
        size = self.optional("head_dim")
        return size or max(1, self.number("hidden_size") // self.number("num_attention_heads"))

    def has(self, module: str) -> bool:
        """Whether a module has a weight."""
        return f"{module}.weight" in self.shapes

    def size(self, module: str, dimension: int) -> int:
        """Rows (0) or columns (1) of a module's weight; 0 if there is none."""
        shape = self.shapes.get(f"{module}.weight", ())
        return shape[dimension] if dimension < len(shape) else 0


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one layer, by full name."""

    norms: tuple[NormRole, ...]
    kept_norms: tuple[str, ...]
    attention: AttentionRole
    mlps: tuple[MlpRole, ...]
    routers: tuple[str, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of its blocks that read or write the stream."""
        names = [*self.attention.inputs, self.attention.o]
        for mlp in self.mlps:
            names += [*mlp.inputs, mlp.output]
        return tuple(names)


def layer_of(family: Family, prefix: str, source: SourceFacts) -> Layer:
    """Find a layer's parts; what is missing of them is for the check to say.

    Args:
        family: the declaration.
        prefix: of all names in this layer, with the dot.
        source: the checkpoint.
    """
    attention, norms = _attention(family, prefix, source)
    mlps, routers = _mlps(family, prefix, source)
    readers = {
        "attention": attention.inputs,
        "mlp": (*(name for mlp in mlps for name in mlp.inputs), *routers),
    }
    feeding = [
        NormRole(prefix + norm.module, tuple(name for fed in norm.feeds for name in readers[fed]))
        for norm in family.norms
        if norm.feeds
    ]
    kept = tuple(prefix + norm.module for norm in family.norms if not norm.feeds)
    return Layer((*feeding, *norms), kept, attention, mlps, routers)


def _attention(
    family: Family, prefix: str, source: SourceFacts
) -> tuple[AttentionRole, tuple[NormRole, ...]]:
    """Attention, and the norms inside it that do not read the stream."""
    module = f"{prefix}self_attn"
    output = f"{module}.{family.attention.output}"
    if family.attention.layout == "latent":
        return _latent(module, output, source)
    size = source.optional("head_dim") or family.head_dim or source.head_dim
    heads = source.optional("num_attention_heads") or source.size(output, 1) // size
    if family.attention.layout == "fused":
        qkv = f"{module}.qkv_proj"
        kv_heads = source.optional("num_key_value_heads") or (
            (source.size(qkv, 0) // size - heads) // 2
        )
        starts = (0, heads, heads + kv_heads)
        q, k, v = (
            HeadRows(qkv, count, start * size, size, size)
            for count, start in zip((heads, kv_heads, kv_heads), starts, strict=True)
        )
        return AttentionRole(module, (qkv,), q, k, v, output), ()
    inputs = (f"{module}.q_proj", f"{module}.k_proj", f"{module}.v_proj")
    kv_heads = source.optional("num_key_value_heads") or source.size(inputs[2], 0) // size
    q, k, v = (
        HeadRows(name, count, 0, size, size)
        for name, count in zip(inputs, (heads, kv_heads, kv_heads), strict=True)
    )
    return AttentionRole(module, inputs, q, k, v, output), ()


def _latent(
    module: str, output: str, source: SourceFacts
) -> tuple[AttentionRole, tuple[NormRole, ...]]:
    heads = source.number("num_attention_heads")
    nope, rope, value = (
        source.number(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    keys_and_values = f"{module}.kv_b_proj"
    norms = [NormRole(f"{module}.kv_a_layernorm", (keys_and_values,), on_stream=False)]
    inputs, queries = [f"{module}.q_proj"], f"{module}.q_proj"
    if source.text.get("q_lora_rank"):
        inputs, queries = [f"{module}.q_a_proj"], f"{module}.q_b_proj"
        norms.append(NormRole(f"{module}.q_a_layernorm", (queries,), on_stream=False))
    role = AttentionRole(
        module,
        (*inputs, f"{module}.kv_a_proj_with_mqa"),
        q=HeadRows(queries, heads, 0, nope + rope, nope + rope),
        k=HeadRows(keys_and_values, heads, 0, nope + value, nope),
        v=HeadRows(keys_and_values, heads, nope, nope + value, value),
        o=output,
    )
    return role, tuple(norms)


def _mlps(
    family: Family, prefix: str, source: SourceFacts
) -> tuple[tuple[MlpRole, ...], tuple[str, ...]]:
    """The MLPs that a layer has, and whatever weighs their outputs."""
    found: list[MlpRole] = []
    routers: list[str] = []
    for declared in family.mlps:
        modules = _instances((prefix + declared.module).removesuffix("."), declared, source)
        for module in modules:
            inputs = tuple(f"{module}.{name}" for name in declared.inputs)
            found.append(MlpRole(module, inputs, f"{module}.{declared.output}"))
        if modules:
            routers += [prefix + router for router in declared.routers]
    if not found:
        raise CtcliError(
            f"{prefix.removesuffix('.')}: this layer has no MLP that its family could have.",
            "Check that the checkpoint is complete, with one linear for each part of an expert, "
            "and that config.json belongs to it.",
        )
    return tuple(found), tuple(routers)


def _instances(module: str, declared: Mlp, source: SourceFacts) -> list[str]:
    """The modules of a declared MLP that are there: each expert, or the one there is."""

    def is_there(name: str) -> bool:
        return any(source.has(f"{name}.{part}") for part in (*declared.inputs, declared.output))

    if "*" not in module:
        return [module] if is_there(module) else []
    experts: list[str] = []
    while is_there(expert := module.replace("*", str(len(experts)))):
        experts.append(expert)
    return experts
