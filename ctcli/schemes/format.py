"""What every numeric format is asked, and what most of them answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ctcli.lazy.nodes import NonFiniteError, Output
from ctcli.lazy.tensors import TensorSpec
from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.family import Execution, Numerics, Observer
from ctcli.schemes.tiles import granule_of, tile_of

if TYPE_CHECKING:
    from ctcli.ops.comparing import Deviation
    from ctcli.ops.decoding import Codes, Elements
    from ctcli.ops.quantized import Array, Body, FormatName, QuantizedBlock, Rounding, Search

# What has to be known of a whole weight before a part of it can be quantized: the range of all of
# it or of each of its rows; the largest magnitude that a fused set shares.
Whole = Literal["range", "largest"]

_HINT = "Repair the checkpoint, leave the module out with --ignore, or give --allow-nonfinite."


@dataclass(frozen=True)
class StoredPart:
    """A tensor of a quantized weight, and what is looked at in it.

    Attributes:
        suffix: its name after the module's.
        spec: all of it.
        bits: some of its rows, or columns, as unsigned integers.
        has_end: whether the last of them are among these.
        by_columns: whether they are columns.
    """

    suffix: str
    spec: TensorSpec
    bits: Array
    has_end: bool
    by_columns: bool


class ShapeError(ValueError):
    """The tensors of a weight contradict each other.

    Attributes:
        shape: what the weight's is nevertheless taken for.
    """

    def __init__(self, message: str, shape: tuple[int, int]) -> None:
        super().__init__(message)
        self.shape = shape


class NumericFormat(ABC):
    """All that is true of a numeric format. Its instances are alike.

    Attributes:
        FORMATS: compressed-tensors' names of its layouts on disk.
        ARITHMETIC: the file in `ctcli.ops` with its kernels.
    """

    FORMATS: ClassVar[tuple[str, ...]]
    ARITHMETIC: ClassVar[FormatName]

    @abstractmethod
    def claims(self, weights: QuantizationArgs) -> bool:
        """Whether such weights are of this format, if no format before it in the table claims them.

        Not all that is claimed can be quantized.
        """

    @abstractmethod
    def accepts(self, scheme: Scheme) -> bool:
        """Whether weights of this scheme can be quantized and read."""

    @abstractmethod
    def default_format(self, weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
        """The layout that compressed-tensors chooses, except where vLLM could not load it."""

    @abstractmethod
    def outputs(self, numerics: Numerics, weight: TensorSpec) -> Mapping[str, Output]:
        """The tensors that stand for a weight, by suffix."""

    @abstractmethod
    def _stored(
        self, found: QuantizedBlock, shape: tuple[int, ...], numerics: Numerics, whole: Array | None
    ) -> dict[str, Array]:
        """The rows (columns) of each output, as unsigned integers, of what a block became."""

    @abstractmethod
    def _read(
        self, tensors: Mapping[str, Array], shape: tuple[int, int], numerics: Numerics
    ) -> tuple[Array, Array, Array | None]:
        """Codes (a row's bytes), scales and zero points (float32) of stored rows or columns."""

    @abstractmethod
    def _elements(self, scheme: Scheme) -> tuple[int, Elements]:
        """Bits of a stored code, and what codes stand for."""

    def kind(self, weights: QuantizationArgs) -> str:
        """Its name for people, with the bits of an element."""
        scaled = "MX" if weights.scale_dtype == "torch.uint8" else ""
        return f"{scaled}FP{weights.num_bits}"

    def check_bits(self, arguments: QuantizationArgs) -> None:
        """Refuse elements of a size that this format does not have.

        Raises:
            ValueError: says which it has.
        """
        if arguments.type == "float" and arguments.num_bits not in (4, 6, 8):
            raise ValueError(f"{arguments.num_bits} bits: floats have 4, 6 or 8")

    def observer_problem(self, scheme: Scheme, observer: Observer) -> str | None:  # noqa: ARG002
        """Why an observer is of no use for weights of a scheme; None: it is."""
        if observer in ("minmax", "mse"):
            return None
        return "negative scales gain something for integers only"

    def search(self, numerics: Numerics) -> Search | None:
        """What an observer tries."""
        from ctcli.ops.quantized import LEAST_SQUARES

        return LEAST_SQUARES if numerics.observer == "mse" else None

    def granule(self, scheme: Scheme) -> tuple[int, int]:
        """Rows, and columns, of the weight that belong together once `whole` is known."""
        return granule_of(scheme.weights)

    def whole(self, scheme: Scheme, by_columns: bool) -> Whole | None:
        """What blocks of rows (columns) of a weight need to know of the whole of it."""
        strategy = scheme.weights.strategy
        return "range" if strategy == "tensor" or (strategy == "channel" and by_columns) else None

    def encode(
        self,
        block: Array,
        tag: str,
        *,
        shape: tuple[int, ...],
        numerics: Numerics,
        execution: Execution,
        whole: Array | None,
        count: int = 1,
    ) -> tuple[dict[str, Array], list[list[float]]]:
        """Quantize some rows of a weight, or some columns; or several weights.

        Args:
            block: [rows, columns]: uint16 (the bits of BF16 or F16), float32 or float64.
            tag: the block's dtype.
            shape: of the whole weight.
            numerics: how.
            execution: where.
            whole: what `whole` asks for: [low, high] as [2, 1 or rows], or [largest magnitude].
            count: how many weights of that shape the block has, one below the other.

        Returns:
            The rows (columns) of each output as unsigned integers of their size; and for each
            weight the sums of squares of the error of what a reader computes in float32, and of
            the weight.

        Raises:
            NonFiniteError: there are NaN or infinities, and that is not allowed.
        """
        rounding = self._rounding(numerics, 0.0)
        ranges = whole
        if self.whole(numerics.scheme, False) == "largest":
            assert whole is not None, "the fused set's largest magnitude"
            rounding, ranges = self._rounding(numerics, float(whole[0])), None
        found = _body(execution).quantize(block, tag, rounding, ranges, count)
        sums = found.sums.tolist()
        if not (execution.allow_nonfinite or all(math.isfinite(energy) for _, energy in sums)):
            raise NonFiniteError(_HINT)
        return self._stored(found, shape, numerics, whole), sums

    def compare(
        self, tensors: Mapping[str, Array], expected: Array, tag: str, scheme: Scheme, dtype: str
    ) -> Deviation:
        """Compare what `encode` wrote, as a reader computes it, with what it should be; on the CPU.

        compressed-tensors multiplies likewise, and rounds the product to the dtype of the scales or
        to bfloat16.

        Args:
            tensors: rows (columns) of each output, as unsigned integers.
            expected: the weights that they should stand for, as `encode` takes them.
            tag: the dtype of these.
            scheme: how they are quantized.
            dtype: of their scales, where these are floats of the weight's dtype.
        """
        from ctcli.ops.blocks import compare

        numerics = Numerics(scheme, dtype, "float32", "minmax")
        codes, scales, zeros = self._read(tensors, expected.shape, numerics)
        return compare(expected, tag, codes, scales, zeros, self._rounding(numerics, 0.0))

    def codes(
        self, tensors: Mapping[str, Array], shape: tuple[int, int], scheme: Scheme, dtype: str
    ) -> Codes:
        """What `encode` wrote, as `ops.decoding` takes it.

        Args:
            tensors: rows (columns) of each output, as unsigned integers.
            shape: of the weights that they stand for, [rows, columns].
            scheme: how these are quantized.
            dtype: see `compare`.
        """
        from ctcli.ops.decoding import Codes

        numerics = Numerics(scheme, dtype, "float32", "minmax")
        stream, scales, zeros = self._read(tensors, shape, numerics)
        height, width = tile_of(scheme.weights)
        tile = (height or max(1, shape[0]), width or max(1, shape[1]))
        return Codes(stream, *self._elements(scheme), scales, zeros, tile)

    def widest(self, block: Array, tag: str, *, numerics: Numerics, execution: Execution) -> Array:
        """[-low, high] of some of a weight, or of each row: float32 [2, 1 or rows]; for `max`."""
        return _body(execution).widest(block, tag, self._rounding(numerics, 0.0))

    def shrunk_errors(
        self, block: Array, tag: str, *, numerics: Numerics, execution: Execution, whole: Array
    ) -> Array:
        """The error for each part of a range that the search tries; for `sum`.

        Args:
            block: see `encode`.
            tag: likewise.
            numerics: likewise.
            execution: likewise.
            whole: [low, high] of the whole weight, or of each row.

        Returns:
            float64 [parts, 1 or rows].
        """
        return _body(execution).errors(block, tag, self._rounding(numerics, 0.0), whole)

    def shape_of(
        self,
        specs: Mapping[str, TensorSpec],
        scheme: Scheme,
        read: Callable[[str], bytes],
    ) -> tuple[int, int] | None:
        """[rows, columns] of the weight that tensors stand for; None: there is none.

        Args:
            specs: of the tensors, by suffix.
            scheme: how the weight is quantized.
            read: the bytes of one of the tensors.

        Raises:
            ShapeError: the tensors contradict each other.
        """
        packed, plain = specs.get("weight_packed"), specs.get("weight")
        if packed and len(packed.shape) == 2:
            if packed.dtype == "U8":
                return packed.shape[0], 8 * packed.shape[1] // scheme.weights.num_bits
            return self._unpacked(specs, scheme, read)
        if plain and len(plain.shape) == 2:
            return plain.shape[0], plain.shape[1]
        return None

    def _unpacked(
        self,
        specs: Mapping[str, TensorSpec],
        scheme: Scheme,  # noqa: ARG002 (formats share one signature)
        read: Callable[[str], bytes],  # noqa: ARG002
    ) -> tuple[int, int]:
        rows, columns = specs["weight_packed"].shape
        return rows, 2 * columns

    def faults(
        self,
        stored: StoredPart,
        shape: tuple[int, int],  # noqa: ARG002 (formats share one signature)
        scheme: Scheme,
    ) -> Iterator[tuple[str, int]]:
        """Values in a tensor that no writer means: what is wrong, and with how many (perhaps 0).

        Args:
            stored: some of the tensor.
            shape: of the weight.
            scheme: how it is quantized.
        """
        from ctcli.ops.comparing import count_nonfinite
        from ctcli.ops.faults import code_faults, scale_faults

        bits, tag, inputs = stored.bits, stored.spec.dtype, scheme.input_activations
        if stored.suffix.endswith("_scale"):
            yield from scale_faults(bits, tag)
        elif stored.suffix == "input_zero_point" and inputs:
            yield code_faults(bits, inputs.num_bits)
        elif stored.suffix == "weight" and tag != "I8":
            yield "codes are NaN", count_nonfinite(bits, tag)

    def _rounding(self, numerics: Numerics, total: float) -> Rounding:
        from ctcli.ops.quantized import Rounding

        weights = numerics.scheme.weights
        return Rounding(
            self.ARITHMETIC,
            numerics.dtype,
            numerics.compute_dtype == "weight",
            tile_of(weights),
            weights.num_bits,
            packed=numerics.scheme.format == "pack-quantized",
            symmetric=weights.symmetric,
            signed=numerics.observer == "signed",
            search=self.search(numerics),
            total=total,
        )


def _body(execution: Execution) -> Body:
    from ctcli.ops.backend import body

    return body(execution.device)
