"""Weights of compressed-tensors checkpoints, whatever wrote them.

config.json says how a module is quantized, and its tensors have to agree. Layouts and arithmetic:
https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.formats.declared import QUANT_METHOD
from ctcli.formats.sources.coded import Coded, Source, SourceError, SourceFormat, part
from ctcli.formats.sources.decoding import HINT, Decoding, decoded
from ctcli.lazy.nodes import (
    Computed,
    Input,
    LazyTensor,
    Node,
    NonFiniteError,
    Output,
    Shape,
    Where,
    matrix_shape,
)
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.modules import Module
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.schemes import format_of, words
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Numerics
from ctcli.schemes.format import ShapeError
from ctcli.schemes.integer import spaced_words
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
    files = {leaf: tensor for leaf in module.parts if (tensor := part(module, leaf))}
    stored: dict[str, LazyTensor] = {**files}
    specs = {leaf: tensor.spec for leaf, tensor in stored.items()}

    def content(leaf: str) -> bytes:
        tensor = files[leaf]
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
    spaced = _spaced(specs, scheme, shape)
    for leaf, output in expected.items():
        spec = spaced.get(leaf, output.spec)
        if leaf != "weight_shape" and specs.get(leaf) != spec:
            found = f"{specs[leaf].dtype} {list(specs[leaf].shape)}" if leaf in specs else "missing"
            raise SourceError(f"{leaf}: it is {found}, and not {spec.dtype} {list(spec.shape)}")
    if spaced:
        stored |= _packed_anew(module.name, stored, spaced, expected, scheme.weights.num_bits)
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


def _spaced(specs: Mapping[str, TensorSpec], scheme: Scheme, shape: Shape) -> dict[str, TensorSpec]:
    """What packed tensors look like where no element lies in two words, if this is such a weight.

    compressed-tensors packed 3, 5, 6 and 7 bits so before release 0.18.
    """
    bits, (rows, columns) = scheme.weights.num_bits, shape
    if scheme.format != "pack-quantized" or 32 % bits == 0:
        return {}
    packed = TensorSpec("I32", (rows, spaced_words(columns, bits)))
    zeros = specs.get("weight_zero_point")
    if specs.get("weight_packed") != packed or packed.shape[1] == -(-columns * bits // 32):
        return {}
    found = {"weight_packed": packed}
    if zeros:
        found["weight_zero_point"] = TensorSpec("I32", (spaced_words(rows, bits), zeros.shape[-1]))
    return found


def _packed_anew(
    module: str,
    stored: Mapping[str, LazyTensor],
    spaced: Mapping[str, TensorSpec],
    expected: Mapping[str, Output],
    bits: int,
) -> dict[str, LazyTensor]:
    """Such tensors in today's packing."""
    found: dict[str, LazyTensor] = {}
    for leaf, before in spaced.items():
        spec = expected[leaf].spec
        shape, old = matrix_shape(spec.shape), matrix_shape(before.shape)
        is_weight = leaf == "weight_packed"  # zero points are packed along the rows
        node = Node(
            key=f"{module}/{leaf}/pack",
            module=module,
            shape=shape,
            inputs={leaf: Input(stored[leaf], old, each=(1 if is_weight else old[0], 0))},
            outputs={leaf: Output(spec)},
            kernel=PackAnew(leaf, bits, spec.shape),
            granule=(1 if is_weight else shape[0], 1),
        )
        found[leaf] = Computed(node, leaf)
    return found


@dataclass(frozen=True)
class PackAnew:
    """Pack integers densely that were packed word by word.

    Attributes:
        leaf: the tensor, `weight_packed` or, packed along its rows, `weight_zero_point`.
        bits: of an element.
        shape: of the dense tensor.
    """

    leaf: str
    bits: int
    shape: tuple[int, ...]

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        import numpy as np

        from ctcli.ops.packing import pack_words

        is_weight = self.leaf == "weight_packed"
        words, count = blocks[self.leaf], self.shape[int(is_weight)] * 32 // self.bits
        words = np.ascontiguousarray(words if is_weight else words.T)
        shifts = np.arange(32 // self.bits, dtype=np.uint32) * self.bits
        codes = (words[:, :, None] >> shifts & np.uint32(2**self.bits - 1)).astype(np.uint8)
        codes = codes.reshape(len(words), -1)
        codes = np.pad(codes, ((0, 0), (0, max(0, count - codes.shape[1]))))[:, :count]
        packed = pack_words(np.ascontiguousarray(codes), self.bits)
        return {self.leaf: packed if is_weight else np.ascontiguousarray(packed.T)}, ()


def _all_columns(item: Input) -> Input:
    assert item.each, "scales are fewer than weights"
    return item._replace(each=(item.each[0], 0))


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
