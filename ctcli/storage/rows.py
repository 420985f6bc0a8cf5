"""Rows and columns of tensors between files and memory, through buffers that are used again.

F32 and F64 are floats in memory; elements of other dtypes are unsigned integers of their size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ctcli.lazy.known import array_dtype
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.storage.transfer import write_bytes

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block


class Buffer:
    """Memory that grows to what is asked for, and is used again."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def view(self, nbytes: int) -> memoryview:
        """The first bytes of it; what they held before is lost."""
        if len(self._bytes) < nbytes:
            self._bytes = bytearray(nbytes)
        return memoryview(self._bytes)[:nbytes]


def read_rows(descriptor: int, tensor: Stored, start: int, stop: int, buffer: Buffer) -> Block:
    """Read rows of a stored tensor.

    Returns:
        [stop - start, all other dimensions], in the buffer.

    Raises:
        EOFError: the file ends before.
    """
    row_bytes = _row_bytes(tensor.spec)
    content = buffer.view((stop - start) * row_bytes)
    _fill(descriptor, content, tensor.start + start * row_bytes)
    return _as_array(content, tensor.spec, stop - start)


def read_matrices(descriptor: int, tensors: Sequence[Stored], buffer: Buffer) -> Block:
    """Read stored matrices of one dtype and shape, one below the other; see `read_rows`."""
    spec, count = tensors[0].spec, len(tensors)
    content = buffer.view(count * spec.nbytes)
    for i, tensor in enumerate(tensors):
        _fill(descriptor, content[i * spec.nbytes : (i + 1) * spec.nbytes], tensor.start)
    return _as_array(content, spec, count * spec.shape[0])


def read_columns(descriptor: int, tensor: Stored, start: int, stop: int, buffer: Buffer) -> Block:
    """Read columns of a stored matrix, [rows, stop - start]; see `read_rows`."""
    rows, row_bytes = tensor.spec.shape[0], _row_bytes(tensor.spec)
    first, width = _columns(tensor.spec, start, stop)
    if width == row_bytes:
        return read_rows(descriptor, tensor, 0, rows, buffer)
    content = buffer.view(rows * width)
    for row in range(rows):
        piece = content[row * width : (row + 1) * width]
        _fill(descriptor, piece, tensor.start + row * row_bytes + first)
    return _as_array(content, tensor.spec, rows)


def write_rows(descriptor: int, offset: int, spec: TensorSpec, start: int, rows: Block) -> int:
    """Write rows of the tensor that begins at `offset`, from row `start` on.

    Returns:
        The number of bytes written.
    """
    content = as_bytes(rows)
    write_bytes(descriptor, offset + start * _row_bytes(spec), content)
    return content.nbytes


def write_columns(
    descriptor: int, offset: int, spec: TensorSpec, start: int, columns: Block
) -> int:
    """Write columns of the matrix that begins at `offset`, from column `start` on."""
    content, row_bytes = as_bytes(columns), _row_bytes(spec)
    first, width = _columns(spec, start, start + columns.shape[1])
    if width == row_bytes:
        return write_rows(descriptor, offset, spec, 0, columns)
    for row in range(spec.shape[0]):
        piece = content[row * width : (row + 1) * width]
        write_bytes(descriptor, offset + row * row_bytes + first, piece)
    return content.nbytes


def _fill(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise EOFError
        view, position = view[count:], position + count


def _as_array(content: memoryview, spec: TensorSpec, rows: int) -> Block:
    import numpy as np

    dtype = np.dtype(array_dtype(spec))
    return np.ndarray((rows, len(content) // max(1, rows) // dtype.itemsize), dtype, content)


def as_bytes(block: Block) -> memoryview:
    """The bytes of a block, as they are written."""
    import numpy as np

    content: memoryview = np.ascontiguousarray(block).reshape(-1).view("u1").data
    return content


def _row_bytes(spec: TensorSpec) -> int:
    return spec.nbytes // max([1, *spec.shape[:1]])


def _columns(spec: TensorSpec, start: int, stop: int) -> tuple[int, int]:
    """Where the columns begin in a row, and how wide they are together, in bytes."""
    element = _row_bytes(spec) // spec.shape[1]
    return start * element, (stop - start) * element
