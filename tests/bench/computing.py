"""A command without its reading and writing: `python -m tests.bench.computing COMMAND ...`.

It plans, computes and notes as `ctcli COMMAND ...` does, but what it reads is the same few MB of
memory again and again, and what it computes goes nowhere: DST has holes for tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctcli.__main__ import main
from ctcli.engine import perform
from ctcli.lazy.known import array_dtype
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.storage.rows import Buffer
from ctcli.units import Advance

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block

_NORMAL = np.random.default_rng(0).normal(size=2**16).astype(np.float32)
_ELEMENTS = np.tile(_NORMAL.view(np.uint16)[1::2], 2**8)  # the upper halves, which are BF16


def _read_rows(_file: int, tensor: Stored, start: int, stop: int, _buffer: Buffer) -> Block:
    return _elements(tensor, stop - start, tensor.spec.nbytes // max(1, tensor.spec.shape[0]))


def _read_columns(_file: int, tensor: Stored, start: int, stop: int, _buffer: Buffer) -> Block:
    rows, columns = tensor.spec.shape
    return _elements(tensor, rows, tensor.spec.nbytes // (rows * columns) * (stop - start))


def _read_matrices(_file: int, tensors: Sequence[Stored], buffer: Buffer) -> Block:
    first = tensors[0]
    return _read_rows(0, first, 0, len(tensors) * first.spec.shape[0], buffer)


def _elements(tensor: Stored, rows: int, row_bytes: int) -> Block:
    nbytes = rows * row_bytes
    content = _ELEMENTS if _ELEMENTS.nbytes >= nbytes else np.resize(_ELEMENTS, nbytes // 2 + 1)
    return content.view(np.uint8)[:nbytes].view(array_dtype(tensor.spec)).reshape(rows, -1)


def _write(_file: int, _offset: int, _spec: TensorSpec, _start: int, block: Block) -> int:
    return block.nbytes


def _write_pieces(_file: int, _pieces: Iterable[tuple[int, memoryview]]) -> None:
    pass


def _copy(
    _source: int, _start: int, _target: int, _offset: int, nbytes: int, advance: Advance
) -> None:
    advance(nbytes)


if __name__ == "__main__":
    for name, stand_in in {
        "read_rows": _read_rows,
        "read_columns": _read_columns,
        "read_matrices": _read_matrices,
        "write_rows": _write,
        "write_columns": _write,
        "write_pieces": _write_pieces,
        "copy_bytes": _copy,
    }.items():
        setattr(perform, name, stand_in)
    main()
