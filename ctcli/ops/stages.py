"""A rotation as a sequence of stages that work on blocks in the processor's caches.

A run of Sylvester's factors is one fast Walsh-Hadamard transform; each other factor is a product.
What comes out for a row or a column does not depend on those it shares a block with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ctcli.ops.hadamard import sylvester
from ctcli.ops.kronecker import merged
from ctcli.ops.products import Product, product_of
from ctcli.ops.transposing import transpose
from ctcli.ops.walsh import RowTransform, transform_columns, transform_rows

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from ctcli.ops.bits import Floats

    Step = Floats | tuple[Floats, ...]

_LEAST_AFTER = 64
"""Neighbours that products with small matrices need to be fast."""
_LEAST_RUN = 16
"""The order of Sylvester's matrix that neighbours need to be transformed fast."""
_LARGEST_SMALL = 128
"""Above, BLAS is faster in float64 than our own loops are."""
_TILE_ROWS, _TILE_BYTES = 128, 2048
"""Of a transform of columns: 256 KiB at most, in pieces of each row that memory gives fast."""
_LEAST_TRANSPOSED = 256
"""Of rows that are transposed on the way."""
_PRODUCT = 256
"""Rows, or columns, of a tile for BLAS."""
_CHUNK_ELEMENTS = 1 << 17
"""Of some rows that go through all stages together."""


class Stage(Protocol):
    """One of the maps that make up P^T, on blocks that are C-contiguous.

    Attributes:
        in_place: whether the result may replace the argument.
    """

    in_place: bool

    def rows(self, x: Floats, out: Floats) -> None:
        """For x [rows, n]."""

    def columns(self, w: Floats, out: Floats) -> None:
        """For w [repeats, n, columns]."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A diagonal matrix, given by its elements [n]."""

    elements: Floats
    in_place = True

    def rows(self, x: Floats, out: Floats) -> None:
        """See `Stage`."""
        np.multiply(x, self.elements, out=out)

    def columns(self, w: Floats, out: Floats) -> None:
        """See `Stage`."""
        np.multiply(w, self.elements[:, np.newaxis], out=out)


@dataclass(frozen=True, eq=False)
class Walsh:
    """Sylvester's matrices among the factors of a Kronecker product, between two diagonal ones.

    Attributes:
        groups: 2**k of each, and the product of the orders of all factors behind it.
        first: a diagonal matrix before them, [n].
        last: one after them, [n]; empty: the identity.
    """

    groups: tuple[tuple[int, int], ...]
    first: Floats
    last: Floats
    in_place = True

    def rows(self, x: Floats, out: Floats) -> None:
        """See `Stage`."""
        transform_rows(x, out, self.of_rows(1))

    def of_rows(self, repeats: int) -> RowTransform:
        """What it does with a row that has its coordinates so many times over."""
        strides = np.array([(after, count * after) for count, after in self.groups])
        return RowTransform(np.tile(self.first, repeats), strides, np.tile(self.last, repeats))

    def columns(self, w: Floats, out: Floats) -> None:
        """See `Stage`."""
        columns = w.shape[2]
        none = self.last[:0]
        passes = [each for group in self.groups for each in _passes(*group)]
        for i, (count, after) in enumerate(passes):
            shape = (w.size // (count * after * columns), count, after * columns)
            first = none if i else self.first
            last = self.last if i == len(passes) - 1 else none
            tile = np.empty(count * (_TILE_BYTES // w.itemsize), w.dtype)
            source = out if i else w
            transform_columns(source.reshape(shape), out.reshape(shape), first, last, columns, tile)


@dataclass(frozen=True, eq=False)
class Small:
    """A factor of a Kronecker product, with the order of all factors behind it."""

    product: Product
    after: int
    in_place = True

    def rows(self, x: Floats, out: Floats) -> None:
        """See `Stage`."""
        self._apply(x, out, self.after)

    def columns(self, w: Floats, out: Floats) -> None:
        """See `Stage`."""
        self._apply(w, out, self.after * w.shape[2])

    def _apply(self, x: Floats, out: Floats, width: int) -> None:
        f = len(self.product.picks)
        shape = (x.size // (f * width), f, width)
        self.product.columns(x.reshape(shape), out.reshape(shape))


@dataclass(frozen=True, eq=False)
class Large:
    """A factor [f, f] that BLAS multiplies by, in float64, where it wins.

    Tiles have one shape, filled up with zeros, and in float64 OpenBLAS's sums do not depend on
    where in a tile a row or column lies, as those in float32 do.
    """

    factor: Floats
    after: int
    in_place = False

    def rows(self, x: Floats, out: Floats) -> None:
        """See `Stage`."""
        f = len(self.factor)
        if self.after > 1:
            self._multiply(x, out, self.after)
            return
        flat, result = x.reshape(x.size // f, f), out.reshape(x.size // f, f)
        for start in range(0, len(flat), _PRODUCT):
            tile = np.zeros((_PRODUCT, f))
            chunk = flat[start : start + _PRODUCT]
            tile[: len(chunk)] = chunk
            result[start : start + _PRODUCT] = (tile @ self.factor)[: len(chunk)]

    def columns(self, w: Floats, out: Floats) -> None:
        """See `Stage`."""
        self._multiply(w, out, self.after * w.shape[2])

    def _multiply(self, x: Floats, out: Floats, width: int) -> None:
        f = len(self.factor)
        shape = (x.size // (f * width), f, width)
        for cell, result in zip(x.reshape(shape), out.reshape(shape), strict=True):
            for start in range(0, width, _PRODUCT):
                tile = np.zeros((f, _PRODUCT))
                piece = cell[:, start : start + _PRODUCT]
                tile[:, : piece.shape[1]] = piece
                turned = self.factor.T @ tile
                result[:, start : start + _PRODUCT] = turned[:, : piece.shape[1]]


@dataclass(frozen=True, eq=False)
class Stages:
    """All stages of P^T, in the order in which they are applied, for one dtype.

    Attributes:
        order: rows of P.
        by_rows: for blocks of rows; None: they are transposed.
        by_columns: for blocks of columns.
    """

    order: int
    by_rows: tuple[Stage, ...] | None
    by_columns: tuple[Stage, ...]

    def of_rows(self, repeats: int) -> RowTransform | None:
        """What they do with a row of so many times the order, if it is one fast transform."""
        if self.by_rows and len(self.by_rows) == 1 and isinstance(self.by_rows[0], Walsh):
            return self.by_rows[0].of_rows(repeats)
        return None

    def apply(self, x: Floats, out: Floats) -> None:
        """X diag(P, ..., P) for x [rows, size]; `out`, C-contiguous, may be x."""
        blocks = (x.shape[0] * x.shape[1] // self.order, self.order)
        flat, result = x.reshape(blocks), out.reshape(blocks)
        least = 1 if self.by_rows else _LEAST_TRANSPOSED
        height = max(least, _CHUNK_ELEMENTS // self.order)
        for start in range(0, len(flat), height):
            chunk, target = flat[start : start + height], result[start : start + height]
            if self.by_rows is None:
                turned = np.empty(chunk.shape[::-1], x.dtype)
                transpose(chunk, turned)
                self.apply_left(turned, turned)
                transpose(turned, target)
            else:
                _through([(s.rows, s.in_place) for s in self.by_rows], chunk, target)

    def apply_left(self, w: Floats, out: Floats) -> None:
        """diag(P, ..., P)^T w for w [size, columns]; `out`, C-contiguous, may be w."""
        if w.size:
            shape = (w.shape[0] // self.order, self.order, w.shape[1])
            stages = [(s.columns, s.in_place) for s in self.by_columns]
            _through(stages, w.reshape(shape), out.reshape(shape))


def stages_of(steps: Sequence[Step], order: int, dtype: DTypeLike) -> Stages:
    """The stages of a product of diagonal matrices, given as vectors, and Kronecker products."""
    by_rows = tuple(_stages(steps, order, dtype, by_rows=True))
    is_slow = any(isinstance(s, Small) and s.after < _LEAST_AFTER for s in by_rows)
    by_columns = tuple(_stages(steps, order, dtype, by_rows=False))
    return Stages(order, None if is_slow else by_rows, by_columns)


def _through(stages: Iterable[tuple[Any, bool]], source: Floats, out: Floats) -> None:
    """Apply stages one after another.

    Args:
        stages: each takes an argument and where to put its result, which may be the argument's
            place if the flag is true.
        source: what the first one takes.
        out: where the last result goes; may be the source.
    """
    current = source
    other: Floats | None = None
    for apply, in_place in stages:
        target = out
        if not in_place and np.may_share_memory(current, out):
            other = np.empty_like(out) if other is None else other
            target = other
        apply(current, target)
        current = target
    if current is not out:
        out[...] = current


def _stages(
    steps: Sequence[Step], order: int, dtype: DTypeLike, *, by_rows: bool
) -> Iterable[Stage]:
    """See `stages_of`."""
    none = np.empty(0, dtype)
    signs: Floats | None = None  # that no stage has taken yet
    for i, step in enumerate(steps):
        if not isinstance(step, tuple):
            signs = step if signs is None else signs * step
            continue
        groups, dense = _split(merged(step) if by_rows and _ends_small(step) else step)
        products = [_product(factor, after, dtype) for factor, after in dense]
        if not groups:
            if signs is not None:
                yield Diagonal(signs.astype(dtype))
            yield from products
        else:
            scale = 1 / sqrt(np.prod([count for count, _ in groups]))
            first = (np.full(order, scale) if signs is None else signs * scale).astype(dtype)
            following = steps[i + 1 :]
            if signs is None and len(following) == 1 and not isinstance(following[0], tuple):
                yield from products
                yield Walsh(groups, first, following[0].astype(dtype))
                return
            yield Walsh(groups, first, none)
            yield from products
        signs = None
    if signs is not None:
        yield Diagonal(signs.astype(dtype))


def _product(factor: Floats, after: int, dtype: DTypeLike) -> Stage:
    product = product_of(factor, dtype)
    if product.by_fours or len(factor) <= _LARGEST_SMALL:
        return Small(product, after)
    return Large(np.ascontiguousarray(factor, np.float64), after)


def _split(
    factors: Sequence[Floats],
) -> tuple[tuple[tuple[int, int], ...], list[tuple[Floats, int]]]:
    """Runs of Sylvester's factors, and the other factors; each with the order of what follows."""
    groups: list[tuple[int, int]] = []
    dense = []
    after = 1
    for factor in reversed(factors):
        f = len(factor)
        if not _is_sylvester(factor):
            dense.append((factor, after))
        elif groups and groups[-1][0] * groups[-1][1] == after:
            count, behind = groups[-1]
            groups[-1] = (count * f, behind)
        else:
            groups.append((f, after))
        after *= f
    return tuple(groups), dense[::-1]


def _ends_small(factors: Sequence[Floats]) -> bool:
    """Whether the last factors are not a run of Sylvester's that is long enough to be fast."""
    groups, _ = _split(factors)
    return not groups or groups[0][1] > 1 or groups[0][0] < _LEAST_RUN


def _is_sylvester(factor: Floats) -> bool:
    f = len(factor)
    is_power = f > 1 and f & (f - 1) == 0
    return is_power and bool(np.abs(factor * sqrt(f) - sylvester(f)).max() < 1e-12)


def _passes(count: int, after: int) -> Iterable[tuple[int, int]]:
    """Sylvester's matrix as a product of some that each fit in a tile, the last one first."""
    bits = count.bit_length() - 1
    passes = -(-bits // (_TILE_ROWS.bit_length() - 1))
    for i in range(passes):
        size = 1 << (bits // passes + (i < bits % passes))
        yield size, after
        after *= size
