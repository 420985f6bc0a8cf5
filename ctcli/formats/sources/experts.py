"""FP8 weights of all experts of a layer in one tensor, as transformers 5 and fbgemm write them.

`experts.gate_up_proj` E4M3 [experts, 2 I, H] and `experts.down_proj` [experts, H, I], each with
scales named `<it>_scale_inv`: what `float8` reads, once for each expert. Llama-4's are transposed:
`gate_up_proj` [experts, H, 2 I] with `gate_up_proj_scale` [experts, 1, 2 I], `down_proj`
[experts, I, H] with `down_proj_scale` [experts, H, 1], a scale for each column. Layouts:
transformers' `integrations/finegrained_fp8.py` and `integrations/fbgemm_fp8.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import Scaled, decoded, scale_input, viewed
from ctcli.formats.sources.float8 import INPUT_SCALES, float8
from ctcli.lazy.nodes import Computed, Input, LazyTensor, Node, Output, Stacked
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.lazy.unchanged import Unchanged
from ctcli.models.experts import PackedExperts, layout_problem, parts_of, shape_problem
from ctcli.models.modules import Module
from ctcli.schemes.presets import preset

_ROLES = ("gate_up_proj", "down_proj")
_SCALES = ("_scale_inv", "_scale")


class FusedExperts(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """The packed weights below a module of experts."""
        for role in _ROLES:
            packed = source.modules.get(module.tensor(role))
            weight = part(packed, "") if packed else None
            leaf = next((role + s for s in _SCALES if part(module, role + s)), "")
            scale = part(module, leaf)
            if weight and scale and weight.spec.dtype == "F8_E4M3":
                yield _Experts(module, role, weight, leaf, scale, source).read()


@dataclass(frozen=True)
class _Experts:
    """A packed weight.

    Attributes:
        module: the experts.
        role: its own name below them.
        weight: its codes, [experts, rows, columns].
        leaf: what its scales are called.
        scale: these.
        source: the rest.
    """

    module: Module[LazyTensor]
    role: str
    weight: Stored
    leaf: str
    scale: Stored
    source: Source

    def read(self) -> Coded:
        """It, and the linears that it holds where they can be told apart."""
        experts, rows, columns = self.weight.spec.shape
        scales = self.scale.spec.shape
        if len(scales) != 3 or scales[0] != experts:
            raise SourceError(
                f"its scales {list(scales)} are not those of experts {list(self.weight.spec.shape)}"
            )
        is_transposed = self.leaf == f"{self.role}_scale" and scales[1:] == (
            (columns, 1) if self.role == "down_proj" else (1, columns)
        )
        if is_transposed:
            return self._transposed()
        first = self._rows(0, self.role, 0, 1)
        problem = self._problem(first, rows)
        if problem:
            others = (self._rows(expert, self.role, 0, 1) for expert in range(1, experts))
            return self._stacked([first, *others], problem)
        names = parts_of(self.role)
        return self._stacked(
            [
                self._rows(expert, name, at, len(names))
                for expert in range(experts)
                for at, name in enumerate(names)
            ]
        )

    def _problem(self, whole: Coded, rows: int) -> str:
        """Why an expert is not cut into linears; empty: it is."""
        packed = PackedExperts(self.module.name, self.role, self.weight.spec.shape[0])
        problem = layout_problem(packed, self.weight.spec, self.source.config)
        if problem:
            return problem
        count, tiles = len(parts_of(self.role)), self.scale.spec.shape[1]
        assert isinstance(whole.weight, Computed), "one expert is one matrix"
        kernel = whole.weight.node.kernel
        assert isinstance(kernel, Scaled), "FP8 is"
        is_apart = tiles == 1 or rows // count % kernel.tile[0] == 0
        return "" if is_apart else "its gate and up share blocks"

    def _transposed(self) -> Coded:
        """Llama-4's, whose linears are the columns."""
        experts, rows, columns = self.weight.spec.shape
        packed, names = (
            PackedExperts(self.module.name, self.role, self.weight.spec.shape[0]),
            parts_of(self.role),
        )
        turned = TensorSpec(self.weight.spec.dtype, (experts, columns, rows))
        problem = shape_problem(packed, turned, self.source.config)
        found = self._stacked(
            [self._by_columns(expert) for expert in range(experts)],
            problem or "its experts are stored transposed",
        )
        if problem:
            return found
        width = columns // len(names)
        linears = tuple(
            self._turned(expert, name, range(at * width, (at + 1) * width))
            for expert in range(experts)
            for at, name in enumerate(names)
        )
        assert isinstance(found.weight, Stacked), "it is"
        weights = {each.name: each.weight for each in linears if isinstance(each.weight, Computed)}
        return replace(
            found, weight=replace(found.weight, linears=weights), refusal="", linears=linears
        )

    def _turned(self, expert: int, name: str, columns: range) -> Coded:
        """Some of the columns of an expert as the linear that they are, with a scale each."""
        codes, tag = _piece(self.weight, expert, 0, 1), self.scale.spec.dtype
        module, rows = f"{self.module.name}.{expert}.{name}", codes.spec.shape[0]
        shape, ends = (len(columns), rows), (columns.start, columns.stop)
        scales = _piece(self.scale, expert, 0, 1)
        one = TensorSpec(tag, (1,)).nbytes
        scale = Stored(
            TensorSpec(tag, (len(columns), 1)), scales.file, scales.start + columns.start * one
        )
        turned = Input(codes, (rows, codes.spec.shape[1]), "transposed", columns=ends)
        kernel = Scaled("F32", 8, "e4m3", tag, (1, rows))
        inputs = {"codes": turned, "scale": Input(scale, (len(columns), 1), each=(1, 0))}
        node = Node(
            key=f"{module}/weight/convert",
            module=module,
            shape=shape,
            inputs={"weight": turned},
            outputs={"weight": Output(TensorSpec("F8_E4M3", shape))},
            kernel=Unchanged(),
        )
        return Coded(
            f"{module}.weight",
            "FP8, a scale for each row, transposed",
            (),
            decoded(module, inputs, kernel, shape, (1, 1), self.source.dtype),
            is_exact=False,
            scheme=preset("FP8_DYNAMIC"),
            stored={"weight": Computed(node, "weight"), "weight_scale": scale},
        )

    def _stacked(self, parts: list[Coded], problem: str = "") -> Coded:
        linears = () if problem else tuple(parts)
        weights = tuple(each.weight for each in parts if isinstance(each.weight, Computed))
        spec = TensorSpec(self.source.dtype, self.weight.spec.shape)
        names = {each.name: weight for each, weight in zip(linears, weights, strict=False)}
        beside = [self.role + f"_{leaf}" for leaf in INPUT_SCALES]
        return Coded(
            self.module.tensor(self.role),
            f"{parts[0].method}, in packed experts",
            tuple(
                self.module.tensor(leaf)
                for leaf in (self.role, self.leaf, *(b for b in beside if part(self.module, b)))
            ),
            Stacked(spec, weights, names),
            is_exact=parts[0].is_exact,
            refusal=problem,
            linears=linears,
        )

    def _rows(self, expert: int, name: str, at: int, count: int) -> Coded:
        """One of so many equal parts of the rows of an expert."""
        parts: dict[str, LazyTensor] = {"weight": _piece(self.weight, expert, at, count)}
        tiles = self.scale.spec.shape[1]
        at, count = (at, count) if tiles > 1 else (0, 1)
        scale = _piece(self.scale, expert, at, count)
        parts["weight_scale_inv"] = scale
        parts |= self._input_scales(expert)
        name = f"{self.module.name}.{expert}.{name}"
        linear = Module(name, "linear", parts, parts["weight"])
        codes = part(linear, "weight")
        assert codes, "it was put there"
        return float8(linear, codes, "weight_scale_inv", scale, self.source)

    def _input_scales(self, expert: int) -> Mapping[str, LazyTensor]:
        found: dict[str, LazyTensor] = {}
        for leaf in INPUT_SCALES:
            tensor = part(self.module, f"{self.role}_{leaf}")
            if tensor and math.prod(tensor.spec.shape) == 1:
                found[leaf] = viewed(tensor, tensor.spec.dtype, (1,))
            elif tensor and math.prod(tensor.spec.shape) == self.weight.spec.shape[0]:
                flat = viewed(tensor, tensor.spec.dtype, (self.weight.spec.shape[0], 1, 1))
                found[leaf] = viewed(_piece(flat, expert, 0, 1), tensor.spec.dtype, (1,))
            elif tensor:
                raise SourceError(f"its {leaf} {list(tensor.spec.shape)} is not one number")
        return found

    def _by_columns(self, expert: int) -> Coded:
        codes = _piece(self.weight, expert, 0, 1)
        rows, columns = shape = codes.spec.shape[0], codes.spec.shape[1]
        tag, tile = self.scale.spec.dtype, (rows, 1)
        scale = viewed(_piece(self.scale, expert, 0, 1), tag, (1, columns))
        inputs = {"codes": Input(codes, shape), "scale": scale_input(scale, tile, shape)}
        name = f"{self.module.name}.{self.role}.{expert}"
        kernel = Scaled("F32", 8, "e4m3", tag, tile)
        floats = decoded(name, inputs, kernel, shape, (1, 1), self.source.dtype)
        method = "FP8, a scale for each column"
        return Coded(name, method, (), floats, is_exact=False)


def _piece(tensor: Stored, expert: int, at: int, count: int) -> Stored:
    """One of so many equal parts of the rows of one expert, as a matrix."""
    _, rows, columns = tensor.spec.shape
    spec = TensorSpec(tensor.spec.dtype, (rows // count, columns))
    return Stored(spec, tensor.file, tensor.start + (expert * count + at) * spec.nbytes)


FUSED_EXPERTS = FusedExperts()
