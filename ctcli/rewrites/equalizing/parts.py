"""What can be equalized in an architecture: columns, and what is divided where they are multiplied.

A linear reads x as W x. With a diagonal matrix D, (W D) (D^-1 x) is the same. D^-1 goes into what
makes x without a nonlinearity behind it: a norm's gain; the rows of `up`, since a gated MLP reads
act(gate) * up; the rows of the values, of which attention outputs are sums by head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture, AttentionRole, HeadRows, MlpRole, NormRole
from ctcli.models.checking import Shapes
from ctcli.models.config import text_config
from ctcli.models.fused import FUSED_ROLES

Part = Literal["norms", "up and down", "v and o"]
PARTS: tuple[Part, ...] = ("norms", "up and down", "v and o")
# What both sides are called where a gate's activation is multiplied with the other's output.
_GATED = {roles.members for roles in FUSED_ROLES if len(roles.members) == 2 and not roles.parents}
_GATE_ABOVE_UP = "gate_up_proj"
# Keys of config.json that name the activation of MLPs.
_ACTIVATIONS = ("activation_function", "hidden_act", "hidden_activation")
# Between a block's input linears and its scores, where they meet no value.
_OF_SCORES = re.compile(r"([qk]|query|key)_?(layer_?)?norm\..*|rotary_emb\..*|sinks?")


@dataclass(frozen=True)
class Scaling:
    """Columns that are scaled together.

    Attributes:
        part: which part of the model it belongs to.
        linears: those whose columns are multiplied.
        norm: whose gain is divided; None: rows are.
        rows: the rows that are divided, in the order of the columns; None: a gain is.
        repeats: how many heads of columns, side by side, read each head of the rows.
    """

    part: Part
    linears: tuple[str, ...]
    norm: NormRole | None = None
    rows: HeadRows | None = None
    repeats: int = 1


@dataclass
class Found:
    """What can be equalized.

    Attributes:
        scalings: in the order of the model.
        reasons: why a part is left as it is, or some of it.
    """

    scalings: list[Scaling] = field(default_factory=list)
    reasons: dict[Part, str] = field(default_factory=dict)

    def count(self, part: Part) -> int:
        """How many scalings a part has."""
        return sum(scaling.part == part for scaling in self.scalings)


def find(architecture: Architecture, config: Mapping[str, Any], shapes: Shapes) -> Found:
    """All columns that can be scaled, and why others cannot.

    Args:
        architecture: the parts of the model.
        config: config.json.
        shapes: shape by tensor name.
    """
    found = Found()
    for norm in architecture.norms:
        if architecture.lm_head not in norm.linears:  # the head stays as it is
            found.scalings.append(Scaling("norms", norm.linears, norm=norm))
    if not found.scalings:
        found.reasons["norms"] = "no norm with a gain feeds the linears of a layer"
    text, unknown = text_config(config), _unknown(architecture, shapes)
    if architecture.transposed or any(name.endswith(".weight") for name in architecture.views):
        raise CtcliError(
            f"{architecture.family}: its weights are stored transposed, or several in one tensor, "
            "and such are not equalized.",
            "Leave equalize out, or save the model with one linear for each part of an expert.",
        )
    normed = {name for norm in architecture.norms if not norm.on_stream for name in norm.linears}
    for mlp in architecture.mlps:
        rows = _up_rows(mlp, text, shapes, unknown)
        if mlp.output in normed:
            rows = f"a norm stands before {mlp.output}"
        if isinstance(rows, HeadRows):
            found.scalings.append(Scaling("up and down", (mlp.output,), rows=rows))
        else:
            found.reasons.setdefault("up and down", rows)
    for attention in architecture.attentions:
        if reason := _value_reason(architecture, attention, unknown):
            found.reasons.setdefault("v and o", reason)
        else:
            repeats = attention.q.heads // attention.v.heads
            found.scalings.append(
                Scaling("v and o", (attention.o,), rows=attention.v, repeats=repeats)
            )
    return found


def _up_rows(
    mlp: MlpRole, text: Mapping[str, Any], shapes: Shapes, unknown: list[str]
) -> HeadRows | str:
    """The rows that an MLP's output linear reads linearly, or why there are none."""
    if between := next(_below(mlp.module, unknown), None):
        return f"{between} may stand before {mlp.output}"
    if text.get("swiglu_limit") is not None:
        return "swiglu_limit cuts gate and up off at a bound, one by one"
    inner = shapes[f"{mlp.output}.weight"][1]
    return _gated_rows(mlp, shapes, inner) or _plain_rows(mlp, text, shapes, inner)


def _gated_rows(mlp: MlpRole, shapes: Shapes, inner: int) -> HeadRows | None:
    """The rows that a gate is multiplied with; None: it is not known which these are."""
    leaves = tuple(module.rpartition(".")[2] for module in mlp.inputs)
    for names in (leaves, leaves[::-1]):
        if names in _GATED:
            return HeadRows(mlp.inputs[leaves.index(names[1])], 1, 0, inner, inner)
    fused = mlp.inputs[0]
    if leaves == (_GATE_ABOVE_UP,) and shapes[f"{fused}.weight"][0] == 2 * inner:
        return HeadRows(fused, 1, inner, 2 * inner, inner)
    return None


def _plain_rows(
    mlp: MlpRole, text: Mapping[str, Any], shapes: Shapes, inner: int
) -> HeadRows | str:
    """The rows of an MLP's one input linear without a gate, or why these are of no use."""
    (module, *others), (rows, _) = mlp.inputs, shapes[f"{mlp.inputs[0]}.weight"]
    if others or rows != inner:
        return f"which rows of {', '.join(mlp.inputs)} are the gate's is not known"
    named = next((str(text[key]) for key in _ACTIVATIONS if text.get(key)), "not told")
    if named == "relu":  # relu(x / d) = relu(x) / d
        return HeadRows(module, 1, 0, inner, inner)
    return f"{module} goes through an activation that is not linear ({named})"


def _value_reason(
    architecture: Architecture, attention: AttentionRole, unknown: list[str]
) -> str | None:
    """Why the values of an attention block cannot be divided; None: they can."""
    if reason := architecture.refusals.get("R2"):
        return reason
    if attention.normed:
        return f"what the heads make is normalised before {attention.o}"
    for name in _below(attention.module, unknown):
        if not _OF_SCORES.fullmatch(name.removeprefix(f"{attention.module}.")):
            return f"{name} may stand between {attention.v.module} and {attention.o}"
    return None


def _below(module: str, names: list[str]) -> Iterator[str]:
    return (name for name in names if module and name.startswith(f"{module}."))


def _unknown(architecture: Architecture, shapes: Shapes) -> list[str]:
    """Tensors of no part, which the family knows, or a user's mapping ignores."""
    norms = [norm.module for norm in architecture.norms]
    latent = [norm.linears for norm in architecture.norms if not norm.on_stream]
    known = {*architecture.linears, *architecture.routers, *norms, *architecture.kept_norms}
    known |= {name for linears in latent for name in linears}
    known |= {attention.v.module for attention in architecture.attentions}
    return [name for name in shapes if name.rpartition(".")[0] not in known]
