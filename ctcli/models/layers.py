"""One layer of a declared family, as it is in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ctcli.errors import CtcliError
from ctcli.models.architecture import AttentionRole, MixerRole, MlpRole, NormRole
from ctcli.models.facts import SourceFacts
from ctcli.models.family import Attention, Family, Mlp
from ctcli.models.heads import heads_of


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one layer, by full name."""

    norms: tuple[NormRole, ...]
    kept_norms: tuple[str, ...]
    attentions: tuple[AttentionRole, ...]
    mixers: tuple[MixerRole, ...]
    mlps: tuple[MlpRole, ...]
    routers: tuple[str, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of its blocks that read or write the stream."""
        names = [name for a in self.attentions for name in (*a.inputs, *a.outputs)]
        names += [name for mixer in self.mixers for name in (*mixer.inputs, mixer.output)]
        names += [name for mlp in self.mlps for name in (*mlp.inputs, mlp.output)]
        return tuple(names)


def layer_of(family: Family, prefix: str, source: SourceFacts) -> Layer:
    """Find a layer's parts; what is missing of them is for the check to say.

    Args:
        family: the declaration.
        prefix: of all names in this layer, with the dot.
        source: the checkpoint.

    Raises:
        CtcliError: a block or a norm is not there in any form that the family could have.
    """
    mixers = tuple(
        MixerRole(module, tuple(f"{module}.{name}" for name in each.inputs), output)
        for each in family.mixers
        if source.has(output := f"{(module := prefix + each.module)}.{each.output}")
        and source.has(f"{module}.{each.inputs[0]}")
    )
    attentions: list[AttentionRole] = []
    inner: list[NormRole] = []
    for declared in family.attentions:
        # Where layers differ, one without the tensors of attention has none.
        if not family.mixers or _is_attention(prefix + declared.module, declared, source):
            role, norms = heads_of(declared, family, prefix, source)
            attentions.append(role)
            inner += norms
    mlps, routers = _mlps(family, prefix, source, required=not family.mixers)
    layer = Layer((), (), tuple(attentions), mixers, mlps, routers)
    if not layer.linears:
        raise CtcliError(
            f"{prefix.removesuffix('.')}: this layer has no block that its family could have.",
            "Check that the checkpoint is complete, and that config.json belongs to it.",
        )
    feeding, kept = _norms(family, prefix, source, layer)
    declared_inner = [
        NormRole(prefix + norm, tuple(prefix + linear for linear in linears), on_stream=False)
        for norm, linears in family.inner_norms
        if source.has(prefix + norm)
    ]
    own = {norm.module for norm in declared_inner}
    inner = [*(norm for norm in inner if norm.module not in own), *declared_inner]
    return Layer((*feeding, *inner), kept, tuple(attentions), mixers, mlps, routers)


def _is_attention(module: str, declared: Attention, source: SourceFacts) -> bool:
    first = "kv_a_proj_with_mqa" if declared.layout == "latent" else declared.inputs[0]
    return source.has(f"{module}.{first}") and source.has(f"{module}.{declared.output}")


def _norms(
    family: Family, prefix: str, source: SourceFacts, layer: Layer
) -> tuple[list[NormRole], tuple[str, ...]]:
    """The norms that blocks read, and those behind blocks."""
    feeding, kept = [], []
    blocks = {"attention": layer.attentions, "mixer": layer.mixers}
    for norm in family.norms:
        module = prefix + norm.module
        if norm.beside and not blocks[norm.beside]:
            continue
        if norm.optional and not source.has(module):
            continue
        if not norm.feeds:
            kept.append(module)
            continue
        linears = tuple(dict.fromkeys(n for fed in norm.feeds for n in _fed(fed, prefix, layer)))
        if not linears:
            raise CtcliError(
                f"{module}: nothing in this layer is known to read this norm.",
                "Check that config.json belongs to these weights, or describe the model in a file "
                "and give --mapping FILE.",
            )
        feeding.append(NormRole(module, linears))
    return feeding, tuple(kept)


def _fed(fed: str, prefix: str, layer: Layer) -> list[str]:
    """The linears that a norm feeds: of a kind of blocks, of one block, or one by name."""
    attention = [name for a in layer.attentions for name in a.inputs]
    mixer = [name for each in layer.mixers for name in each.inputs]
    mlp = [name for each in layer.mlps for name in each.inputs] + [*layer.routers]
    kinds = {"attention": attention, "mixer": mixer, "mlp": mlp}
    if fed in kinds:
        return kinds[fed]
    module = prefix + fed
    found = [n for n in (*attention, *mixer, *mlp) if n == module or n.startswith(f"{module}.")]
    return found or [module]


def _mlps(
    family: Family, prefix: str, source: SourceFacts, required: bool
) -> tuple[tuple[MlpRole, ...], tuple[str, ...]]:
    """The MLPs that a layer has, and whatever weighs their outputs."""
    found: list[MlpRole] = []
    routers: list[str] = []
    for declared in family.mlps:
        module = (prefix + declared.module).removesuffix(".")
        roles = _instances(module, declared, source)
        if not (declared.latent and source.has(prefix + declared.latent)):
            found += roles
        if roles:
            routers += [prefix + router for router in declared.routers]
    if not found and required:
        raise CtcliError(
            f"{prefix.removesuffix('.')}: this layer has no MLP that its family could have.",
            "Check that the checkpoint is complete, with one linear for each part of an expert, "
            "and that config.json belongs to it.",
        )
    return tuple(found), tuple(routers)


def _instances(module: str, declared: Mlp, source: SourceFacts) -> list[MlpRole]:
    """What is there of a declared MLP: each expert, or the one there is."""
    names = (*declared.inputs, declared.output)

    def role(expert: str) -> MlpRole | None:
        *inputs, output = (f"{module}.{name}".replace("*", expert) for name in names)
        if not any(source.has(name) for name in (*inputs, output)):
            return None
        return MlpRole(module.replace("*", expert), tuple(inputs), output)

    if "*" not in "".join((module, *names)):
        found = role("")
        return [found] if found else []
    experts: list[MlpRole] = []
    while expert := role(str(len(experts))):
        experts.append(expert)
    return experts
