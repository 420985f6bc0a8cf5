"""Weights of compressed-tensors checkpoints, whatever wrote them.

config.json says how a module is quantized, and its tensors have to agree. Layouts and arithmetic:
https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ctcli.formats.declared import QUANT_METHOD
from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import HINT, Decoding, decoded
from ctcli.lazy.nodes import Input, LazyTensor, NonFiniteError, Where
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.modules import Module
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.schemes import format_of, words
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Numerics
from ctcli.schemes.format import ShapeError
from ctcli.schemes.tiles import stored_inputs

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks
    from ctcli.ops.decoding import Codes

_WEIGHTS = ("weight_packed", "weight")
# What a server needs beside the weight, and floats do not.
_BESIDE = ("weight_shape", "input_scale", "input_zero_point", "input_global_scale", "weight_g_idx")


class Compressed(SourceFormat):
    """See `SourceFormat`."""

    def weights(self, module: Module[LazyTensor], source: Source) -> Iterator[Coded]:
        """The weight of a module that a config group quantizes."""
        declared = source.declared
        if declared is None or declared.method != QUANT_METHOD:
            return
        weight = next((t for leaf in _WEIGHTS if (t := part(module, leaf))), None)
        if weight is None or not part(module, "weight_scale"):
            return
        group = declared.group_of(module.name)
        if group is None:
            raise SourceError("it is quantized, and config.json leaves its module alone")
        yield _read(module, group.scheme, source.dtype)


def _read(module: Module[LazyTensor], scheme: Scheme, dtype: str) -> Coded:
    try:
        form = format_of(scheme)
    except ValueError as error:
        raise SourceError(str(error)) from error
    stored = {leaf: tensor for leaf in module.parts if (tensor := part(module, leaf))}
    specs = {leaf: tensor.spec for leaf, tensor in stored.items()}

    def content(leaf: str) -> bytes:
        tensor = stored[leaf]
        return tensor.file.read(tensor.start, tensor.spec.nbytes)

    try:
        shape = form.shape_of(specs, scheme, content)
    except ShapeError as error:
        raise SourceError(f"weight_shape: {error}") from error
    if shape is None:
        raise SourceError(f"it has no weight that {words(scheme.weights)} could stand for")
    scale = stored["weight_scale"].spec.dtype
    numerics = Numerics(scheme, scale if scale in WEIGHT_FLOATS else dtype, "float32", "minmax")
    expected = form.outputs(numerics, TensorSpec(numerics.dtype, shape))
    for leaf, output in expected.items():
        if leaf != "weight_shape" and specs.get(leaf) != output.spec:
            found = f"{specs[leaf].dtype} {list(specs[leaf].shape)}" if leaf in specs else "missing"
            spec = output.spec
            raise SourceError(f"{leaf}: it is {found}, and not {spec.dtype} {list(spec.shape)}")
    taken = {leaf: stored[leaf] for leaf in (*expected, *_BESIDE) if leaf in stored}
    home = next(leaf for leaf in _WEIGHTS if leaf in expected)
    granule, order = form.granule(scheme), taken.get("weight_g_idx")
    read = {leaf: taken[leaf] for leaf in expected if leaf != "weight_shape"}
    inputs = stored_inputs(read, expected, granule, shape)
    if order:
        inputs |= {
            leaf: _all_columns(inputs[leaf])
            for leaf in ("weight_scale", "weight_zero_point")
            if leaf in inputs
        }
        inputs["weight_g_idx"] = Input(order, (1, shape[1]), each=(0, 0))
    kernel = DecodeCompressed("F32", scheme, numerics.dtype)
    return Coded(
        module.tensor("weight"),
        f"{words(scheme.weights)}, {scheme.format}",
        tuple(module.tensor(leaf) for leaf in {home: 0, **taken}),
        decoded(module.name, inputs, kernel, shape, granule, dtype),
        is_exact=scale in ("U8", "F8_E8M0"),
        scheme=scheme,
        stored=taken,
    )


def _all_columns(item: Input) -> Input:
    assert item.each, "scales are fewer than weights"
    return replace(item, each=(item.each[0], 0))


@dataclass(frozen=True)
class DecodeCompressed(Decoding):
    """Decode the tensors of a scheme.

    Attributes:
        scheme: the scheme.
        dtype: safetensors tag of the scales, where these are floats of the weight's dtype.
    """

    scheme: Scheme
    dtype: str

    def codes(self, blocks: Blocks, where: Where) -> Codes:
        """See `Decoding`.

        Raises:
            NonFiniteError: a scale is NaN.
        """
        import numpy as np

        shape = (len(where.rows), len(where.columns))
        scales = blocks["weight_scale"]
        if self.scheme.weights.scale_dtype and (scales & 0x7F == 0x7F).any():
            is_exponent = self.scheme.weights.scale_dtype == "torch.uint8"
            if not is_exponent or (scales == 0xFF).any():
                raise NonFiniteError(HINT)
        found = format_of(self.scheme).codes(blocks, shape, self.scheme, self.dtype)
        if "weight_g_idx" not in blocks:
            return found
        groups = found.scales.shape[1]
        order = blocks["weight_g_idx"].view(np.int32).reshape(-1)[list(where.columns)]
        if ((order < 0) | (order >= groups)).any():
            raise NonFiniteError("weight_g_idx names groups that are not there: repair it.")
        zeros = None if found.zeros is None else found.zeros[:, order]
        return found._replace(scales=found.scales[:, order], zeros=zeros, tile=(1, 1))


COMPRESSED = Compressed()
