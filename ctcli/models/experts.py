"""Packed experts: one 3-D tensor for all experts of a layer, and how it splits into linears.

Known layouts are [experts, out, in] with gate above up. Some models store [experts, in, out], or
interleave gate and up; those cannot be told from the shape alone, so config.json must agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.models.config import size_of, text_config
from ctcli.models.families import model_type, transposed

_PACKED = re.compile(r"(?P<parent>.*experts)\.(?P<role>gate_up_proj|down_proj)(?:\.weight)?")
EXPERT = re.compile(r"(?P<parent>.*\bexperts)\.[0-9]+(\..*)?")
"""A module of one expert."""

# GraniteMoE's, which servers read under these names or one by one, and never quantized so.
_UNSPLIT = re.compile(r"(?P<parent>.*\.block_sparse_moe)\.(?P<role>input|output)_linear")
_UNSPLIT_ROLES = {"input": "gate_up_proj", "output": "down_proj"}
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def is_expert(module: str) -> bool:
    """Whether a module is one expert, or inside one."""
    return EXPERT.fullmatch(module) is not None


@dataclass(frozen=True)
class PackedExperts:
    """A packed tensor's place: below which module, and what it packs, of how many experts."""

    parent: str
    role: str
    experts: int

    @property
    def linears(self) -> list[str]:
        """The modules that it holds the weights of, in order."""
        parts = _PARTS[self.role]
        return [f"{self.parent}.{e}.{part}" for e in range(self.experts) for part in parts]


def packed_experts(name: str, spec: TensorSpec) -> PackedExperts | None:
    """What a tensor packs, if it packs experts."""
    match = _PACKED.fullmatch(name) if len(spec.shape) == 3 else None
    return PackedExperts(match["parent"], match["role"], spec.shape[0]) if match else None


def unsplit_experts(module: str, spec: TensorSpec) -> PackedExperts | None:
    """The same for a module whose tensor stays as it is stored, whatever is done to others."""
    match = _UNSPLIT.fullmatch(module) if len(spec.shape) == 3 else None
    if not match:
        return None
    role = _UNSPLIT_ROLES[match["role"]]
    return PackedExperts(f"{match['parent']}.experts", role, spec.shape[0])


def layout_problem(
    packed: PackedExperts, spec: TensorSpec, config: Mapping[str, Any]
) -> str | None:
    """Why a packed tensor cannot be split: its layout is unknown, or not what config.json says."""
    return turned(config) or shape_problem(packed, spec, config)


def turned(config: Mapping[str, Any]) -> str | None:
    """What to say of models that store experts [experts, in, out]; None: it is not known of this.

    Loaders take these as they are stored, gate and up interleaved in some.
    """
    name = model_type(config)
    return f"experts of {name} are stored transposed" if transposed(config) == "experts" else None


def shape_problem(packed: PackedExperts, spec: TensorSpec, config: Mapping[str, Any]) -> str | None:
    """Why a tensor of this shape is not [experts, out, in], as config.json has the sizes."""
    text = text_config(config)
    hidden = size_of(text, "hidden_size")
    inner = size_of(text, "moe_intermediate_size", "intermediate_size")
    experts = size_of(text, "num_experts", "num_local_experts", "n_routed_experts")
    if not (hidden and inner and experts):
        return "config.json does not tell the number and the size of the experts"
    expected = (experts, 2 * inner, hidden)
    if packed.role == "down_proj":
        expected = (experts, hidden, inner)
    if spec.shape == expected:
        return None
    if spec.shape == (expected[0], expected[2], expected[1]):
        return f"its shape {list(spec.shape)} is the transposed layout"
    return f"its shape is {list(spec.shape)}, and config.json asks for {list(expected)}"


def parts_of(role: str) -> tuple[str, ...]:
    """The linears of an expert that a tensor packs, from its first rows on."""
    return _PARTS[role]


def split_experts(packed: PackedExperts, tensor: Stored) -> dict[str, Stored]:
    """The experts' own weights, as views of the packed tensor's bytes, by name."""
    _, rows, columns = tensor.spec.shape
    spec = TensorSpec(tensor.spec.dtype, (rows // len(_PARTS[packed.role]), columns))
    return {
        f"{module}.weight": Stored(spec, tensor.file, tensor.start + i * spec.nbytes)
        for i, module in enumerate(packed.linears)
    }
