"""Rows of tensors between files and torch, through buffers that are used again and again."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ctcli.storage.transfer import write_bytes
from ctcli.tensors import StoredTensor, TensorSpec, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_buffers = threading.local()


def read_rows(descriptor: int, tensor: StoredTensor, start: int, stop: int) -> Tensor:
    """Read rows of a stored tensor.

    Returns:
        [stop - start, ...] in the stored dtype. It lies in this thread's buffer, which the next
        call overwrites.

    Raises:
        EOFError: the file ends before.
    """
    import torch

    row_bytes = _row_bytes(tensor.spec)
    nbytes = (stop - start) * row_bytes
    if len(getattr(_buffers, "bytes", b"")) < nbytes:
        _buffers.bytes = bytearray(nbytes)
    view, position = memoryview(_buffers.bytes)[:nbytes], tensor.start + start * row_bytes
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise EOFError
        view, position = view[count:], position + count
    rows = torch.frombuffer(_buffers.bytes, dtype=torch.uint8, count=nbytes)
    return rows.view(torch_dtype(tensor.spec.dtype)).view(stop - start, *tensor.spec.shape[1:])


def write_rows(descriptor: int, offset: int, spec: TensorSpec, start: int, rows: Tensor) -> int:
    """Write rows of the tensor that begins at `offset`, from row `start` on.

    Returns:
        The number of bytes written.
    """
    import torch

    content = rows.contiguous().view(-1).view(torch.uint8).numpy().data
    write_bytes(descriptor, offset + start * _row_bytes(spec), content)
    return content.nbytes


def _row_bytes(spec: TensorSpec) -> int:
    return spec.nbytes // spec.shape[0]
