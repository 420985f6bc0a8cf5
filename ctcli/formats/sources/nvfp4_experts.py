"""Llama-4's experts in NVFP4, one linear each: their bytes, transposed.

ModelOpt packs the first dimension of [in, out], two codes to a byte, so that the transposed bytes
are those of [out, in] packed along its columns, as compressed-tensors has them. The first half of
`gate_up_proj`'s columns is the gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctcli.formats.sources.coded import Coded, Source
from ctcli.formats.sources.decoding import Scaled, decoded, viewed, whole_input
from ctcli.formats.sources.packed import made
from ctcli.formats.sources.scales import Reciprocal, scaled
from ctcli.lazy.nodes import Input, LazyTensor
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.lazy.unchanged import Unchanged
from ctcli.models.config import text_config
from ctcli.models.experts import PackedExperts, parts_of, shape_problem
from ctcli.schemes.presets import preset

_TYPES = ("llama4", "llama4_text")
_GROUP = 16


@dataclass(frozen=True)
class TransposedExperts:
    """A packed tensor of experts [experts, in, out].

    Attributes:
        parent: the module of the experts.
        role: `gate_up_proj` or `down_proj`.
        codes: U8 [experts, in / 2, out].
        scale: E4M3 [experts, in / 16, out].
        total: F32, one number or one for each expert.
        inputs: F32, likewise, the scale of what they read; None: there is none.
        source: the rest.
    """

    parent: str
    role: str
    codes: Stored
    scale: Stored
    total: Stored
    inputs: Stored | None
    source: Source

    def problem(self) -> str | None:
        """Why it cannot be taken apart."""
        model_type = text_config(self.source.config).get("model_type")
        if model_type not in _TYPES:
            return f"how experts of {model_type} lie in one tensor is not known of NVFP4"
        experts, pairs, rows = self.codes.spec.shape
        packed = PackedExperts(self.parent, self.role, experts)
        turned = TensorSpec("U8", (experts, rows, 2 * pairs))
        return shape_problem(packed, turned, self.source.config)

    def linears(self) -> Iterator[Coded]:
        """The linears, expert by expert."""
        names, rows = parts_of(self.role), self.codes.spec.shape[2]
        width = rows // len(names)
        for expert in range(self.codes.spec.shape[0]):
            for at, name in enumerate(names):
                module = f"{self.parent}.{expert}.{name}"
                yield self._linear(module, expert, (at * width, (at + 1) * width))

    def _linear(self, module: str, expert: int, ends: tuple[int, int]) -> Coded:
        """An expert's columns from one to another."""
        rows = ends[1] - ends[0]
        codes, scale = _of(self.codes, expert, ends, 8), _of(self.scale, expert, ends, 1)
        pairs, groups = codes.shape[0], scale.shape[0]
        total = _one(self.total, expert)
        floats = decoded(
            module,
            {"codes": codes, "scale": scale, "total": whole_input(total)},
            Scaled("F32", 4, "e2m1", "F8_E4M3", (1, _GROUP)),
            (rows, 2 * pairs),
            (1, _GROUP),
            self.source.dtype,
        )
        stored: dict[str, LazyTensor] = {}
        specs = {"weight_packed": ("U8", codes, pairs), "weight_scale": ("F8_E4M3", scale, groups)}
        for suffix, (tag, item, columns) in specs.items():
            spec, over = {suffix: TensorSpec(tag, (rows, columns))}, ((rows, columns), (1, 1))
            alone = {"codes": item._replace(each=(1, 1))}
            stored[suffix] = made(module, spec, alone, Unchanged(suffix), over)
        scales: Mapping[str, Stored | None] = {
            "weight_global_scale": total,
            "input_global_scale": _one(self.inputs, expert) if self.inputs else None,
        }
        for suffix, found in scales.items():
            if found:
                stored[suffix] = scaled(module, suffix, found, Reciprocal())
        return Coded(
            f"{module}.weight",
            "NVFP4, transposed",
            (),
            floats,
            is_exact=False,
            scheme=preset("NVFP4" if self.inputs else "NVFP4A16"),
            stored=stored,
            has_reciprocal=True,
        )


def _of(tensor: Stored, expert: int, ends: tuple[int, int], each: int) -> Input:
    """Columns of an expert's matrix, as rows, of which so many rows belong to a group."""
    spec = TensorSpec(tensor.spec.dtype, tensor.spec.shape[1:])
    piece = Stored(spec, tensor.file, tensor.start + expert * spec.nbytes)
    rows, columns = spec.shape
    return Input(piece, (rows, columns), "transposed", (each, 1), columns=ends)


def _one(tensor: Stored, expert: int) -> Stored:
    """The number of an expert."""
    one = viewed(tensor, tensor.spec.dtype, (1,))
    at = expert * one.spec.nbytes if math.prod(tensor.spec.shape) > 1 else 0
    return Stored(one.spec, tensor.file, tensor.start + at)
