"""Does an architecture fit its checkpoint: every tensor has a part, every shape is right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain

from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture, AttentionRole, MlpRole

Shapes = Mapping[str, tuple[int, ...]]
# A tensor's name and the shape it has to have; None: any size.
Demand = tuple[str, tuple[int | None, ...]]


def check(architecture: Architecture, shapes: Shapes, others: Sequence[re.Pattern[str]]) -> None:
    """Refuse a checkpoint that is not exactly what its architecture says.

    Args:
        architecture: the parts of its modules.
        shapes: shape by tensor name.
        others: match the whole names of tensors that need no part.

    Raises:
        CtcliError: names every tensor that is missing, misshapen or unknown.
    """
    found: dict[str, None] = {}
    known = set()
    for name, expected in chain(_weights(architecture, shapes), _biases(architecture, shapes)):
        known.add(name)
        if not _fits(shapes.get(name), expected):
            found[_problem(name, shapes.get(name), expected)] = None
    problems = [*found]
    problems += [
        f"{name}: no part of the model is known to have this tensor."
        for name in shapes
        if name not in known and not any(pattern.fullmatch(name) for pattern in others)
    ]
    problems += [
        f"{attention.module} has {attention.q.heads} query heads, which do not divide into groups "
        f"for {attention.v.heads} value heads."
        for attention in architecture.attentions
        if attention.v.heads < 1 or attention.q.heads % attention.v.heads
    ]
    if problems:
        raise CtcliError(
            [f"{architecture.family}: {problem}" for problem in problems],
            "Check that config.json belongs to these weights. If this is a variant of the "
            "architecture, describe it in a file and give --mapping FILE.",
        )


@lru_cache(maxsize=4096)
def _fits(shape: tuple[int, ...] | None, expected: tuple[int | None, ...]) -> bool:
    if shape is None or len(shape) != len(expected):
        return False
    return all(want in (None, size) for size, want in zip(shape, expected, strict=True))


def _problem(name: str, shape: tuple[int, ...] | None, expected: tuple[int | None, ...]) -> str:
    if shape is None:
        return f"{name} is missing."
    wanted = ", ".join("any" if want is None else str(want) for want in expected)
    return f"{name} has the shape {list(shape)}, not [{wanted}]."


def _size(shapes: Shapes, module: str, dimension: int) -> int | None:
    """One dimension of a module's weight, if it is there."""
    shape = shapes.get(f"{module}.weight", ())
    return shape[dimension] if dimension < len(shape) else None


def _weights(architecture: Architecture, shapes: Shapes) -> Iterator[Demand]:
    """Every weight there has to be, some more than once: each role has a demand of its own."""
    hidden = architecture.hidden_size
    yield from _ends(architecture, shapes)
    stream_norms = [norm.module for norm in architecture.norms if norm.on_stream]
    for module in (*stream_norms, *architecture.kept_norms):
        yield f"{module}.weight", (hidden,)
    for norm in architecture.norms:
        if not norm.on_stream:
            yield f"{norm.module}.weight", (_size(shapes, norm.linears[0], 1),)
            for linear in norm.linears:
                yield f"{linear}.weight", (None, None)
    for module in architecture.readers:
        if module != architecture.lm_head:
            yield f"{module}.weight", (None, hidden)
    for module in architecture.writers:
        yield f"{module}.weight", (hidden, None)
    for attention in architecture.attentions:
        yield from _attention(attention)
    for mlp in architecture.mlps:
        yield from _mlp(mlp, shapes)


def _ends(architecture: Architecture, shapes: Shapes) -> Iterator[Demand]:
    """Embeddings and head, which are narrower than the stream if they are projected."""
    before, after = architecture.project_in, architecture.project_out
    hidden = architecture.hidden_size
    yield (
        f"{architecture.token_embedding}.weight",
        (None, _size(shapes, before, 1) if before else hidden),
    )
    for module in architecture.embeddings:
        yield f"{module}.weight", (None, hidden)
    if not architecture.tied:
        width = _size(shapes, after, 0) if after else hidden
        yield f"{architecture.lm_head}.weight", (None, width)


def _attention(attention: AttentionRole) -> Iterator[Demand]:
    roles = (attention.q, attention.k, attention.v)
    for module in dict.fromkeys(role.module for role in roles):
        ends = [role.end for role in roles if role.module == module]
        yield f"{module}.weight", (max(ends), None)
    for output in attention.outputs:
        yield f"{output}.weight", (None, attention.q.heads * attention.v.size)


def _mlp(mlp: MlpRole, shapes: Shapes) -> Iterator[Demand]:
    inner = _size(shapes, mlp.output, 1)
    for module in mlp.inputs:
        # One linear alone may hold gate above up.
        rows = _size(shapes, module, 0)
        fused = len(mlp.inputs) == 1 and inner is not None and rows == 2 * inner
        yield f"{module}.weight", (rows if fused else inner, None)


def _biases(architecture: Architecture, shapes: Shapes) -> Iterator[Demand]:
    """The biases there are; of a head that has none in its family, one would be out of place."""
    linears = {*architecture.readers, *architecture.writers}
    for norm in architecture.norms:
        linears |= {*norm.linears}
    if not architecture.head_bias:
        linears -= {architecture.lm_head}
    for module in sorted(linears):
        if f"{module}.bias" in shapes:
            yield f"{module}.bias", (_size(shapes, module, 0),)
    if architecture.norm_kind == "layer":
        for module in (*(norm.module for norm in architecture.norms), *architecture.kept_norms):
            if f"{module}.bias" in shapes:
                yield f"{module}.bias", (_size(shapes, module, 0),)
