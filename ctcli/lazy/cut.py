"""How a node is cut into spans, within bounds of time and memory. The only place that says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ctcli.lazy.nodes import COLUMNS, ROWS, Axis, Node

# Arithmetic goes over blocks of so many elements: large enough for the calls on each block not to
# matter, small enough for float32 temporaries to be memory that is used again.
BLOCK_ELEMENTS = 1024 * 1024
# A file is read and written by columns in runs of so many: a row of them, which costs two system
# calls, is several pages long.
COLUMNS_AT_ONCE = 2048
# What runs across the rows of a node is read in windows of many rows, if they are not larger.
_WINDOW_BYTES = 32 * 2**20
# A job computes several blocks: few enough for a signal to be answered at once.
_JOB_ELEMENTS = 4 * BLOCK_ELEMENTS
# What a block needs while it is computed, beside its own bytes: float32 temporaries.
BYTES_PER_ELEMENT = 32


@dataclass(frozen=True, slots=True)
class Cut:
    """A node's rows (columns), cut.

    Attributes:
        axis: the direction.
        length: rows (columns) of the node.
        job: of one job.
        window: that are read and written at once.
        band: that are computed at once.
        memory: bytes that a job holds while it runs.
    """

    axis: Axis
    length: int
    job: int
    window: int
    band: int
    memory: int

    @property
    def jobs(self) -> int:
        """How many jobs there are; one where there is nothing to compute, so that files end."""
        return -(-(self.length or 1) // self.job)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and stop of each job."""
        for start in range(0, self.length or 1, self.job):
            yield start, min(start + self.job, self.length)


def cut(node: Node) -> Cut:
    """Cut a node along the axis in which it runs where it is written.

    The result depends on the node alone, never on workers or memory: it decides no byte, but the
    order in which floats are summed.
    """
    axis = node.axis
    length, stored = node.shape[axis], 0
    for tensor in node.reads:
        stored += tensor.spec.nbytes
    least = node.least_rows if axis == ROWS else 1
    return _cut(axis, length, node.across[axis], node.together[axis], stored, least)


@lru_cache(maxsize=4096)
def _cut(axis: Axis, length: int, elements: int, granule: int, stored: int, least: int) -> Cut:
    """Cut rows (columns) of so many elements each, which together are so many bytes in files.

    Many nodes of a model are alike. So many rows at least are read at once, if memory allows it.
    """
    across = max(1, elements)
    rows = max(1, BLOCK_ELEMENTS // across // granule) * granule
    window = band = rows
    if axis == COLUMNS:
        window = max(1, max(COLUMNS_AT_ONCE, BLOCK_ELEMENTS // across) // granule) * granule
        band = min(rows, window)
    elif least > rows:
        allowed = max(rows, min(least, _WINDOW_BYTES * length // max(1, stored)))
        window = -(-allowed // rows) * rows
    job = max(1, _JOB_ELEMENTS // (across * window)) * window
    memory = _memory(axis, min(window, length), band, elements, stored // max(1, length))
    return Cut(axis, length, job, window, band, memory)


def _memory(axis: Axis, window: int, band: int, across: int, stored: int) -> int:
    """Bytes of what is read at once, with what is computed from it.

    Windows are computed in bands. Those of columns are then joined; those of rows may have been
    transposed before.

    Args:
        axis: the direction.
        window: rows (columns) that are read at once.
        band: that are computed at once.
        across: elements of each.
        stored: bytes of each in files.
    """
    if axis != COLUMNS:
        read = window * stored * (1 if window == band else 2)
        return read + band * across * BYTES_PER_ELEMENT
    elements = window * across
    computed = min(elements, band * across)
    return window * stored + computed * BYTES_PER_ELEMENT + 2 * max(window * stored, 4 * elements)
