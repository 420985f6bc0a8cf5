"""What a tensor looks like (dtype, shape) and where its bytes come from, without reading them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ctcli.lazy.dtypes import DTYPES
from ctcli.units import Advance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ctcli.ops.bits import Bits, Floats


# Fewer columns at once are not worth it: each row of them is a piece of the file of its own.
LEAST_COLUMNS = 1024


def torch_dtype(tag: str) -> torch.dtype:
    """Torch's dtype for a safetensors tag. Imports torch."""
    import torch

    found = getattr(torch, DTYPES[tag].torch_name or "", None)
    assert isinstance(found, torch.dtype), tag
    return found


def from_bits(bits: Bits, tag: str) -> Tensor:
    """The numbers that stored elements stand for, in the same memory. Imports torch."""
    import torch

    return torch.from_numpy(bits).view(torch_dtype(tag))


def to_bits(tensor: Tensor) -> Bits:
    """A tensor as it is to be stored."""
    import torch

    sizes = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
    bits: Bits = tensor.contiguous().view(sizes[tensor.element_size()]).numpy()
    return bits


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's safetensors dtype tag (`BF16`, `F8_E4M3`, ...) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Size of the data in bits; a multiple of 8 in every valid file."""
        return math.prod(self.shape) * DTYPES[self.dtype].bits

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.bits // 8


class SourceFile(Protocol):
    """A file of the source checkpoint, on this disk or on a hub."""

    @property
    def name(self) -> str:
        """Path inside the checkpoint, with forward slashes."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def stamp(self) -> str:
        """Identifies the content without reading it (modification time, or hash on the hub)."""

    def read(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `start` (fewer at the end of the file)."""

    def fetch(self, advance: Advance) -> Path:
        """Return a local path to the whole file, downloading it if need be."""

    @property
    def location(self) -> Path:
        """A path on the file system where the file lies, or will lie once it is fetched."""

    @property
    def fetch_bytes(self) -> int:
        """Bytes that `fetch` has to download."""

    @property
    def is_streamed(self) -> bool:
        """Whether it is fetched ahead of the jobs that read it, and given up after them."""

    def fetch_pieces(self, pieces: Sequence[range], advance: Advance) -> Path:
        """Fetch only these bytes of a streamed file; they lie where they do in the whole one."""

    def release(self) -> None:
        """Give up what was fetched, if it is streamed."""


def content_of(file: SourceFile) -> bytes:
    """All bytes of a small file; one on a hub goes through its cache."""
    return file.fetch(lambda _: None).read_bytes()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies in a source file as `spec.nbytes` bytes from `start`."""

    spec: TensorSpec
    file: SourceFile
    start: int


@dataclass(frozen=True, eq=False)
class Matrix:
    """A stored matrix, or what some function makes of its blocks, without any rounding.

    Attributes:
        source: what to read, [rows, columns].
        shape: [rows, columns] of the result; the rows are the source's, and the columns are, too,
            or all columns of the source belong together.
        granule: rows, and columns, of the source that belong together.
        compute: a block of the source as stored, the numbers of its first row and column, the
            values of `needs` -> that block of the result, floats; None: the block itself.
        needs: values to compute first.
    """

    source: StoredTensor
    shape: tuple[int, int]
    granule: tuple[int, int] = (1, 1)
    compute: Callable[[Tensor, int, int, tuple[Tensor, ...]], Tensor] | None = None
    needs: tuple[Reduction, ...] = ()

    @property
    def is_columnwise(self) -> bool:
        """Whether blocks of whole columns are smaller than blocks of whole rows."""
        rows, columns = self.source.spec.shape
        together, across = self.granule
        return together > 1 and together * columns > rows * max(across, LEAST_COLUMNS)

    def block(self, stored: Tensor, start: int, values: tuple[Tensor, ...]) -> Tensor:
        """The block whose first row (column, where it is columnwise) is `start`."""
        if self.compute is None:
            return stored
        place = (0, start) if self.is_columnwise else (start, 0)
        return self.compute(stored, *place, values)


@dataclass(frozen=True, slots=True)
class Output:
    """One of the tensors that a derivation computes.

    Attributes:
        spec: its dtype and shape; for every granule of the input it has equally many rows
            (columns, where the derivation is columnwise).
        is_whole: all of it comes from the first granule instead.
    """

    spec: TensorSpec
    is_whole: bool = False


@dataclass(frozen=True, eq=False)
class Reduction:
    """A small value that needs a pass over whole tensors first, such as a shared scale.

    Attributes:
        inputs: what to read; each is reduced in blocks of rows or columns.
        part: a block of an input, and the value of `after` -> a small tensor.
        combine: how the parts of all blocks become one.
        finish: the combined parts, and the value of `after` -> the value.
        after: a value that must be known before.
        takes_bits: it is for a `Direct`: its one input is stored and a single row, and `part`
            makes an array of its bits.
    """

    inputs: tuple[Matrix, ...]
    part: Callable[[Any, Any], Any]
    combine: Literal["max", "sum"]
    finish: Callable[[Any, Any], Any]
    after: Reduction | None = None
    takes_bits: bool = False


class NonFiniteError(ValueError):
    """A block of a weight holds NaN or infinities; the message says what to do next."""


Compute = Callable[
    ["Tensor", int, tuple["Tensor", ...]], tuple[Mapping[str, "Tensor"], Sequence[float]]
]


@dataclass(frozen=True, eq=False)
class Direct:
    """How to make the outputs of a derivation without torch, from rows of what is stored.

    Attributes:
        compute: rows as stored, [rows, columns], and the values of `needs` -> those rows of each
            output, and what was measured on them.
        needs: values to compute first; they take bits.
    """

    compute: Callable[[Bits, tuple[Floats, ...]], tuple[Mapping[str, Bits], Sequence[float]]]
    needs: tuple[Reduction, ...] = ()


@dataclass(frozen=True, eq=False)
class Derivation:
    """Tensors that are computed together from the rows of a matrix, or from its columns.

    Attributes:
        name: the module it belongs to, for messages and reports.
        matrix: what they are computed from.
        granule: rows that belong together, columns where the matrix is columnwise.
        outputs: what it makes, by local name.
        compute: a block of the matrix, the number of its first row (or column), and the values of
            `needs` -> the block of each output, and what was measured on the block, any number of
            values.
        needs: values to compute first, beside those of the matrix.
        measures: how what was measured on two blocks becomes one, element by element.
        only_rounds: the one output is the matrix, rounded to its dtype: a further rewrite starts
            from the matrix.
        direct: gives the same bytes without torch, which takes a second to load; None: nothing
            does.
    """

    name: str
    matrix: Matrix
    granule: int
    outputs: Mapping[str, Output]
    compute: Compute
    needs: tuple[Reduction, ...] = ()
    measures: Literal["max", "sum"] = "sum"
    only_rounds: bool = False
    direct: Direct | None = None

    def place(self, output: Output, start: int) -> int:
        """The row (column) of an output that the block from `start` on begins with."""
        axis = int(self.matrix.is_columnwise)
        length = self.matrix.source.spec.shape[axis]
        shape = output.spec.shape
        each = shape[axis] * self.granule // length if len(shape) > axis else self.granule
        return start // self.granule * each


@dataclass(frozen=True, slots=True)
class DerivedTensor:
    """One output of a derivation."""

    derivation: Derivation
    output: str

    @property
    def spec(self) -> TensorSpec:
        """Its declared dtype and shape."""
        return self.derivation.outputs[self.output].spec


@dataclass(frozen=True, slots=True)
class KnownTensor:
    """A small tensor whose bytes are known beforehand."""

    spec: TensorSpec
    content: bytes


def widened(tensor: KnownTensor) -> KnownTensor:
    """The same values in float32. Imports torch."""
    import torch

    values = torch.frombuffer(bytearray(tensor.content), dtype=torch_dtype(tensor.spec.dtype))
    content = values.to(torch.float32).numpy().astype("<f4").tobytes()
    return KnownTensor(TensorSpec("F32", tensor.spec.shape), content)


LazyTensor = StoredTensor | DerivedTensor | KnownTensor


def matrix_of(tensor: LazyTensor) -> Matrix | None:
    """What a rewrite starts from: a stored matrix, or a computed one before it was rounded.

    A tensor of another number of dimensions is taken for [first, all others], a vector for a
    single row. None: its values are known, or cannot be had before they were rounded.
    """
    if isinstance(tensor, DerivedTensor):
        return tensor.derivation.matrix if tensor.derivation.only_rounds else None
    if isinstance(tensor, KnownTensor):
        return None
    shape = tensor.spec.shape
    plain = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    return Matrix(replace(tensor, spec=TensorSpec(tensor.spec.dtype, plain)), plain)
