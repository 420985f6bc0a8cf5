"""Values that no writer means: scales of zero or NaN, codes out of range, set padding bits."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import DTYPES, Matrix, StoredTensor, TensorSpec, to_bits, torch_dtype
from ctcli.models.fused import fused_sets
from ctcli.schemes import format_of
from ctcli.schemes.format import Stored
from ctcli.verifying.findings import Finding
from ctcli.verifying.linear import QuantizedModule
from ctcli.verifying.scanning import Extent, Reader, Sight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

NOT_FINITE = "values are NaN or infinite"
_BYTES = 1 << 20  # of a block of a tensor that is looked at as it stands
# Scales that the linears of a fused set share in a server.
_SHARED = ("weight_global_scale", "input_global_scale")


@dataclass(frozen=True)
class PlainScan:
    """A tensor as it stands.

    Attributes:
        name: its name.
        tensor: where it lies.
        expected: where a tensor of the same dtype and shape lies that it has to equal, or the bytes
            it has to equal; None: it need not equal any.
        owner: whose that is.
    """

    name: str
    tensor: StoredTensor
    expected: StoredTensor | bytes | None = None
    owner: str = "the source's"

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.tensor.spec.nbytes * (2 if isinstance(self.expected, StoredTensor) else 1)

    @property
    def extent(self) -> Extent:
        """In bytes."""
        return Extent(self.tensor.spec.nbytes, 1, _BYTES)

    def look(self, reader: Reader, start: int, stop: int, sight: Sight) -> None:
        """Look at bytes from `start` to `stop`."""
        import torch

        from ctcli.ops.comparing import count_different, count_nonfinite

        found = reader.read(_as_bytes(self.tensor), start, stop).view(-1)
        named = DTYPES[self.tensor.spec.dtype].torch_name
        typed = found.view(torch_dtype(self.tensor.spec.dtype)) if named else found
        if typed.is_floating_point() and typed.dtype != torch.float8_e8m0fnu:
            sight.fault(self.name, NOT_FINITE, count_nonfinite(typed))
        if self.expected is None:
            return
        if isinstance(self.expected, bytes):
            content = bytearray(self.expected[start:stop])
            expected = torch.frombuffer(content, dtype=torch.uint8)
        else:
            expected = reader.read(_as_bytes(self.expected), start, stop).view(-1)
        differing = count_different(typed, expected.view(typed.dtype))
        sight.fault(self.name, f"values differ from {self.owner}", differing)


def _as_bytes(tensor: StoredTensor) -> StoredTensor:
    return StoredTensor(TensorSpec("U8", (tensor.spec.nbytes,)), tensor.file, tensor.start)


@dataclass(frozen=True)
class ModuleScan:
    """A quantized weight, perhaps beside what it should be.

    Attributes:
        module: the linear.
        matrix: what its weight should be, where there is a source.
        values: what the matrix needs.
    """

    module: QuantizedModule
    matrix: Matrix | None = None
    values: tuple[Tensor, ...] = ()

    @property
    def name(self) -> str:
        """The module's."""
        return self.module.name

    @property
    def tensor(self) -> StoredTensor:
        """Its codes."""
        return max(self.module.tensors.values(), key=lambda tensor: tensor.spec.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        own = sum(tensor.spec.nbytes for tensor in self.module.tensors.values())
        return own + (self.matrix.source.spec.nbytes if self.matrix else 0)

    @property
    def extent(self) -> Extent:
        """In rows, or in columns if the source is only known by columns."""
        columnwise = self.matrix is not None and self.matrix.is_columnwise
        axis = int(columnwise)
        granule = format_of(self.module.scheme).granule(self.module.scheme)[axis]
        if self.matrix:
            granule = math.lcm(granule, self.matrix.granule[axis])
        shape = self.module.shape
        return Extent(shape[axis], shape[1 - axis], granule, columnwise)

    def look(self, reader: Reader, start: int, stop: int, sight: Sight) -> None:
        """Look at rows (columns) from `start` to `stop`."""
        module, columnwise = self.module, self.extent.columnwise
        tensors = {}
        for suffix, tensor in module.tensors.items():
            first, last = self._slice(suffix, start, stop)
            by_columns = columnwise and not self._is_whole(suffix)
            block = reader.read(tensor, first, last, by_columns)
            if not start or not self._is_whole(suffix):
                ends = last == tensor.spec.shape[int(by_columns)]
                for what, count in _faults(module, suffix, block, ends, by_columns):
                    sight.fault(f"{module.name}.{suffix}", what, count)
            tensors[suffix] = block
        if self.matrix:
            self._compare(reader, tensors, start, stop, sight)

    def _compare(
        self, reader: Reader, tensors: Mapping[str, Tensor], start: int, stop: int, sight: Sight
    ) -> None:
        import torch

        from ctcli.ops.comparing import errors_of
        from ctcli.ops.grouping import Grouping
        from ctcli.schemes.restoring import restore
        from ctcli.schemes.tiles import tile_of

        matrix, columnwise = self.matrix, self.extent.columnwise
        assert matrix is not None
        rows, columns = self.module.shape
        shape = (rows, stop - start) if columnwise else (stop - start, columns)
        restored = restore(self.module.scheme, tensors, shape)
        stored = reader.read(matrix.source, start, stop, columnwise)
        expected = matrix.block(stored, start, self.values).to(torch.float32)
        grouping = Grouping(*tile_of(self.module.scheme.weights))
        errors = errors_of(restored.values, expected, grouping, restored.bounds)
        sight.errors.append((0, start, errors) if columnwise else (start, 0, errors))

    def _is_whole(self, suffix: str) -> bool:
        """Whether a block needs all of a tensor."""
        output = self.module.outputs.get(suffix)
        if output is None or output.is_whole:
            return True
        # The scales of rows, for some of their columns.
        return self.extent.columnwise and output.spec.shape[1] == 1

    def _slice(self, suffix: str, start: int, stop: int) -> tuple[int, int]:
        """The rows (columns) of a tensor that stand for some of the weight's."""
        shape, extent = self.module.tensors[suffix].spec.shape, self.extent
        if self._is_whole(suffix):
            return 0, shape[0]
        axis = int(extent.columnwise)
        each = max(1, shape[axis] * extent.granule // extent.length)
        last = shape[axis] if stop == extent.length else stop // extent.granule * each
        return start // extent.granule * each, last


def _faults(
    module: QuantizedModule, suffix: str, block: Tensor, ends: bool, columnwise: bool
) -> Iterator[tuple[str, int]]:
    """What is wrong with values of a module's tensor, and how often.

    Args:
        module: the module.
        suffix: names the tensor.
        block: some of its rows (columns).
        ends: whether the block has the last of them.
        columnwise: whether it has columns.
    """
    stored = Stored(suffix, module.tensors[suffix].spec, to_bits(block), ends, columnwise)
    return format_of(module.scheme).faults(stored, module.shape, module.scheme)


def shared_findings(modules: Mapping[str, QuantizedModule]) -> Iterator[Finding]:
    """Fused sets whose global scales are not equal: a server has one for all members."""
    for fused in fused_sets(modules):
        for suffix in _SHARED:
            found = {
                member: tensor.file.read(tensor.start, tensor.spec.nbytes)
                for member in fused.tensors
                if (tensor := modules[member].tensors.get(suffix))
            }
            if len({*found.values()}) > 1:
                values = ", ".join(
                    f"{member.rpartition('.')[2]} {_float32(content):g}"
                    for member, content in found.items()
                )
                message = f"its members have different {suffix}: {values}."
                yield Finding("value", fused.name, message)


def _float32(content: bytes) -> float:
    return float(struct.unpack("<f", content[:4])[0])
