"""Integers of 2 to 8 bits: int-quantized (int8 each) and pack-quantized (a dense bit stream)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ctcli.lazy.nodes import Output
from ctcli.lazy.tensors import TensorSpec
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.family import Numerics, Observer
from ctcli.schemes.format import NumericFormat, ShapeError, StoredPart
from ctcli.schemes.tiles import granule_of, read_scales, scale_output, stored_scales

if TYPE_CHECKING:
    from ctcli.ops.decoding import Elements
    from ctcli.ops.quantized import Array, QuantizedBlock, Search

_STRATEGIES = ("tensor", "channel", "group", "block")
_TRIED = 8  # parts of a range, for scales of each sign


class Integers(NumericFormat):
    """See `NumericFormat`."""

    FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
    ARITHMETIC = "integers"

    def claims(self, weights: QuantizationArgs) -> bool:
        """Integers."""
        return weights.type == "int"

    def check_bits(self, arguments: QuantizationArgs) -> None:
        """Integers have 2 to 8."""
        if not 1 < arguments.num_bits <= 8:
            raise ValueError(f"{arguments.num_bits} bits: integers have 2 to 8")

    def accepts(self, scheme: Scheme) -> bool:
        """Integers."""
        return scheme.weights.type == "int" and scheme.weights.strategy in _STRATEGIES

    def default_format(self, weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
        """Packed without quantized inputs, and where vLLM could not load anything else.

        It takes integer weights of fewer than eight bits that come with quantized activations as
        pack-quantized; of int-quantized ones only four bits with eight-bit integer inputs.
        """
        if inputs is None:
            return "pack-quantized"
        as_int8 = inputs.type == "int" and inputs.num_bits == 8 and weights.num_bits in (4, 8)
        return "int-quantized" if as_int8 or weights.num_bits == 8 else "pack-quantized"

    def kind(self, weights: QuantizationArgs) -> str:
        """INT8, ..."""
        return f"INT{weights.num_bits}"

    def observer_problem(self, scheme: Scheme, observer: Observer) -> str | None:
        """Negative scales take symmetric weights, and kernels that only multiply by scales."""
        if observer in ("minmax", "mse"):
            return None
        if not scheme.weights.symmetric:
            return "asymmetric weights have a zero point, which is worth more than a sign"
        if scheme.input_activations:
            return "kernels for quantized activations divide by the largest scale"
        return None

    def search(self, numerics: Numerics) -> Search | None:
        """For `pnorm`, parts of the range from 1.08 on down, with scales of both signs."""
        if numerics.observer != "pnorm":
            return super().search(numerics)
        from ctcli.ops.quantized import Search

        least = 0.52 if numerics.scheme.weights.num_bits < 4 else 0.7
        parts = tuple(1.08 - step * (1.08 - least) / (_TRIED - 1) for step in range(_TRIED))
        return Search((*parts, *(-part for part in parts)), power=4)

    def granule(self, scheme: Scheme) -> tuple[int, int]:
        """A tile, and as much as fills whole words of packed elements and zero points."""
        height, width = granule_of(scheme.weights)
        packed = 32 // math.gcd(32, scheme.weights.num_bits)
        if _packs_zero_points(scheme):
            height = math.lcm(height, packed)
        if scheme.format == "pack-quantized":
            width = math.lcm(width, packed)
        return height, width

    def outputs(self, numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
        """`weight` or `weight_packed` and `weight_shape`; `weight_scale`; `weight_zero_point`."""
        scheme, (rows, columns) = numerics.scheme, weight.shape
        bits = scheme.weights.num_bits
        scale = scale_output(scheme.weights, weight, numerics.dtype)
        found = {"weight_scale": scale}
        if scheme.format == "pack-quantized":
            packed = TensorSpec("I32", (rows, _words(columns, bits)))
            found["weight_packed"] = Output(packed)
            found["weight_shape"] = Output(TensorSpec("I64", (2,)), is_whole=True)
        else:
            found["weight"] = Output(TensorSpec("I8", weight.shape))
        if _packs_zero_points(scheme):
            words = (_words(rows, bits), scale.spec.shape[1])
            found["weight_zero_point"] = Output(TensorSpec("I32", words))
        elif not scheme.weights.symmetric:
            found["weight_zero_point"] = replace(scale, spec=TensorSpec("I8", scale.spec.shape))
        return found

    def faults(
        self, stored: StoredPart, shape: tuple[int, int], scheme: Scheme
    ) -> Iterator[tuple[str, int]]:
        """Codes and zero points out of range, set padding bits, scales that are none."""
        from ctcli.ops.faults import code_faults, padding_faults, scale_faults

        bits, (rows, columns) = scheme.weights.num_bits, shape
        is_packed = stored.spec.dtype == "I32"
        if stored.suffix == "weight_packed" and is_packed:
            if stored.has_end or not stored.by_columns:
                used = columns * bits - 32 * (stored.spec.shape[1] - 1)
                yield padding_faults(stored.bits[:, -1], used)
        elif stored.suffix == "weight_zero_point" and is_packed:
            if stored.has_end or stored.by_columns:
                used = rows * bits - 32 * (stored.spec.shape[0] - 1)
                yield padding_faults(stored.bits[-1], used)
        elif stored.suffix in ("weight", "weight_zero_point"):
            yield code_faults(stored.bits, bits)
        elif stored.suffix == "weight_scale":
            signed = self.observer_problem(scheme, "signed") is None
            yield from scale_faults(stored.bits, stored.spec.dtype, signed)
        else:
            yield from super().faults(stored, shape, scheme)

    def _stored(
        self,
        found: QuantizedBlock,
        shape: tuple[int, ...],
        numerics: Numerics,
        whole: Array | None,  # noqa: ARG002 (formats share one signature)
    ) -> dict[str, Array]:
        import numpy as np

        from ctcli.ops.packing import offset_binary, pack_words

        scheme, weights = numerics.scheme, numerics.scheme.weights
        outputs = {"weight_scale": stored_scales(found.scales, weights, numerics.dtype)}
        if scheme.format == "pack-quantized":
            outputs["weight_packed"] = found.codes.view(np.uint32)
            outputs["weight_shape"] = np.array(shape, np.uint64)
        else:
            outputs["weight"] = found.codes
        if not weights.symmetric:
            zeros: Array = found.marks.astype(np.int8).view(np.uint8)
            if _packs_zero_points(scheme):
                unsigned = np.ascontiguousarray(offset_binary(zeros, weights.num_bits).T)
                zeros = np.ascontiguousarray(pack_words(unsigned, weights.num_bits).T)
            elif weights.strategy == "tensor":
                zeros = zeros.reshape(1)
            outputs["weight_zero_point"] = zeros
        return outputs

    def _elements(self, scheme: Scheme) -> tuple[int, Elements]:
        from ctcli.ops.decoding import integer_elements, signed_elements

        bits = scheme.weights.num_bits
        is_packed = scheme.format == "pack-quantized"
        return (
            (bits, integer_elements(bits, 1 << (bits - 1))) if is_packed else (8, signed_elements())
        )

    def _read(
        self, tensors: Mapping[str, Array], shape: tuple[int, int], numerics: Numerics
    ) -> tuple[Array, Array, Array | None]:
        import numpy as np

        from ctcli.ops.packing import unpack_words

        scheme, bits = numerics.scheme, numerics.scheme.weights.num_bits
        scales = read_scales(tensors["weight_scale"], numerics.dtype)
        is_packed = scheme.format == "pack-quantized"
        codes = np.ascontiguousarray(tensors["weight_packed" if is_packed else "weight"])
        codes = codes.view(np.uint8).reshape(shape[0], -1)
        zeros = tensors.get("weight_zero_point")
        if zeros is None:
            return codes, scales, None
        if _packs_zero_points(scheme):
            unsigned = unpack_words(np.ascontiguousarray(zeros.T), bits, shape[0]).T
            return codes, scales, unsigned.astype(np.float32) - (1 << (bits - 1))
        points = zeros.view(np.int8).astype(np.float32)
        return codes, scales, points.reshape(-1, points.shape[-1])

    def _unpacked(
        self,
        specs: Mapping[str, TensorSpec],
        scheme: Scheme,
        read: Callable[[str], bytes],
    ) -> tuple[int, int]:
        """Columns are those of the scales, else what `weight_shape` says, else what fits in."""
        rows, words = specs["weight_packed"].shape
        bits, group = scheme.weights.num_bits, scheme.weights.group_size
        scale = specs.get("weight_scale")
        found, is_grouped = words * 32 // bits, False
        if group and scale and len(scale.shape) == 2:
            found, is_grouped = scale.shape[1] * group, True
        if specs.get("weight_shape") != TensorSpec("I64", (2,)):
            return rows, found
        said = struct.unpack("<2q", read("weight_shape"))
        able = (_words(said[1], bits), spaced_words(said[1], bits))
        fits = said[1] == found if is_grouped else words in able
        if said[0] == rows and fits:
            return rows, int(said[1])
        message = f"it says {list(said)}, and the weight is {[rows, found]}."
        raise ShapeError(message, (rows, found))


def _packs_zero_points(scheme: Scheme) -> bool:
    """compressed-tensors packs zero points of rows and groups, along the rows, but no others."""
    weights = scheme.weights
    packs = scheme.format == "pack-quantized" and weights.strategy in ("channel", "group")
    return packs and not weights.symmetric


def _words(elements: int, bits: int) -> int:
    """32-bit words that so many packed elements fill."""
    return -(-elements * bits // 32)


def spaced_words(elements: int, bits: int) -> int:
    """The same where no element lies in two words, as compressed-tensors packed before 0.18."""
    return -(-elements // (32 // bits))


INTEGERS = Integers()
