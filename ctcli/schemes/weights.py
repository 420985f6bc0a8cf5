"""From a stored weight and a scheme to the lazy tensors that stand for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import (
    Derivation,
    Direct,
    Matrix,
    Output,
    Reduction,
    TensorSpec,
    from_bits,
    to_bits,
)
from ctcli.schemes import format_of
from ctcli.schemes.family import Execution, Numerics

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Bits, Floats


def derive(
    name: str,
    matrix: Matrix,
    numerics: Numerics,
    execution: Execution,
    shared: Reduction | None,
) -> Derivation:
    """The tensors that stand for one weight.

    Args:
        name: its module.
        matrix: the weight, [rows, columns].
        numerics: how to quantize it.
        execution: how to compute.
        shared: the largest magnitude of its fused set, for strategy tensor_group.
    """
    scheme, by_columns = numerics.scheme, matrix.is_columnwise
    form = format_of(scheme)
    outputs = form.outputs(numerics, TensorSpec(numerics.dtype, matrix.shape))
    needs = (shared,) if shared else ()
    if form.whole(scheme, by_columns) == "range":
        needs = (_range_of(matrix, numerics, execution),)
    if scheme.weights.strategy == "channel" and by_columns:
        outputs = {name: _whole_for_rows(output) for name, output in outputs.items()}
    encode = Encode(matrix.shape, numerics, execution)
    is_direct = not (matrix.compute or needs) and execution.device == "cpu"
    return Derivation(
        name,
        matrix,
        math.lcm(matrix.granule[by_columns], form.granule(scheme)[by_columns]),
        outputs,
        encode,
        needs,
        direct=Direct(encode.direct(matrix.source.spec.dtype)) if is_direct else None,
    )


def _whole_for_rows(output: Output) -> Output:
    """The first columns of a weight give all scales of its rows."""
    return replace(output, is_whole=output.is_whole or output.spec.shape[1] == 1)


@dataclass(frozen=True)
class Encode:
    """Quantizes rows (columns) of a weight, given what is known of the whole.

    Attributes:
        shape: of the weight.
        numerics: how.
        execution: where.
    """

    shape: tuple[int, ...]
    numerics: Numerics
    execution: Execution

    def __call__(
        self, block: Tensor, _start: int, values: tuple[Tensor, ...]
    ) -> tuple[Mapping[str, Tensor], Sequence[float]]:
        """Those of each output, and the sums of squares of the error and of the weight.

        Raises:
            NonFiniteError: they hold NaN or infinities, and that is not allowed.
        """
        numerics = self.numerics
        spec = TensorSpec(numerics.dtype, self.shape)
        outputs = format_of(numerics.scheme).outputs(numerics, spec)
        found, sums = self._bits(*_stored(block), values[0].numpy() if values else None)
        tensors = {name: from_bits(bits, outputs[name].spec.dtype) for name, bits in found.items()}
        return tensors, sums

    def direct(self, dtype: str) -> Rows:
        """The same for rows as stored in a dtype."""
        return Rows(self, dtype)

    def _bits(
        self, block: Bits, dtype: str, whole: Floats | None
    ) -> tuple[Mapping[str, Bits], Sequence[float]]:
        return format_of(self.numerics.scheme).encode(
            block,
            dtype,
            shape=self.shape,
            numerics=self.numerics,
            execution=self.execution,
            whole=whole,
        )


@dataclass(frozen=True)
class Rows:
    """Quantizes rows as they are stored.

    Attributes:
        encode: how.
        dtype: theirs.
    """

    encode: Encode
    dtype: str

    def __call__(
        self, stored: Bits, values: tuple[Floats, ...]
    ) -> tuple[Mapping[str, Bits], Sequence[float]]:
        """See `Encode`."""
        return self.encode._bits(stored, self.dtype, values[0] if values else None)


def _stored(block: Tensor) -> tuple[Bits, str]:
    """A block as an array, and its dtype."""
    import torch

    tags = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    return to_bits(block), tags.get(block.dtype, "F64")


def largest_magnitude(matrices: Sequence[Matrix], execution: Execution) -> Reduction:
    """max|w| over all `matrices`: [1] float32."""
    return Reduction(tuple(matrices), Largest(execution), "max", _as_is)


@dataclass(frozen=True)
class Largest:
    """The largest magnitude of a block: [1] float32."""

    execution: Execution

    def __call__(self, block: Tensor, _: Tensor | None) -> Tensor:
        """See the class."""
        import torch

        from ctcli.ops.backend import body

        return torch.from_numpy(body(self.execution.device).largest(*_stored(block)))


def _range_of(matrix: Matrix, numerics: Numerics, execution: Execution) -> Reduction:
    """[low, high] of the whole weight, or of each of its rows, as the observer has it."""
    widest = Reduction((matrix,), Widest(numerics, execution), "max", _low_and_high)
    if numerics.observer == "minmax":
        return widest
    return Reduction((matrix,), ShrunkErrors(numerics, execution), "sum", _shrink, widest)


@dataclass(frozen=True)
class Widest:
    """[-low, high] of a block, or of each row in it."""

    numerics: Numerics
    execution: Execution

    def __call__(self, block: Tensor, _: Tensor | None) -> Tensor:
        """See the class."""
        import torch

        numerics = self.numerics
        found = format_of(numerics.scheme).widest(
            *_stored(block), numerics=numerics, execution=self.execution
        )
        return torch.from_numpy(found)


def _low_and_high(widest: Tensor, _: Tensor | None) -> Tensor:
    import torch

    return torch.stack((-widest[0], widest[1]))


@dataclass(frozen=True)
class ShrunkErrors:
    """Squared error of a block, or of each row in it, for each range that mse tries."""

    numerics: Numerics
    execution: Execution

    def __call__(self, block: Tensor, bounds: Tensor | None) -> Tensor:
        """See the class."""
        import torch

        assert bounds is not None, "the widest range comes first"
        numerics = self.numerics
        found = format_of(numerics.scheme).shrunk_errors(
            *_stored(block), numerics=numerics, execution=self.execution, whole=bounds.numpy()
        )
        return torch.from_numpy(found)


def _shrink(errors: Tensor, bounds: Tensor | None) -> Tensor:
    import torch

    from ctcli.ops.quantized import SHRINKS

    assert bounds is not None, "the widest range comes first"
    return bounds * torch.tensor(SHRINKS, dtype=torch.float32)[errors.argmin(0)]


def _as_is(combined: Tensor, _: Tensor | None) -> Tensor:
    return combined
