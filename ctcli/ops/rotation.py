"""Rotations: orthogonal matrices Q, block-diagonal, made of Kronecker products and signs.

A Hadamard matrix spreads every coordinate evenly over all (QuaRot, Ashkboos et al. 2024; SpinQuant,
Liu et al. 2024). Small factors are fastest, the last one of 16 or more: 8 (x) 16 (x) 16 takes four
fifths of the time of 32 (x) 64, and a butterfly's eleven passes take more (2048 columns, one
AVX-512 core).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from ctcli.ops.kronecker import Array, merged, order, transposed_times

if TYPE_CHECKING:
    from torch import Tensor

    from ctcli.ops.bits import Floats

    Signs = Floats
    Factors = tuple[Floats, ...]

_BLOCK_ELEMENTS = 1 << 19
"""Of a block of rows, so that its temporaries stay in cache."""

# A matrix that was learned in float32 and saved deviates by 1e-6 to 1e-4. A deviation e changes
# weights by about e relative to their size: 1e-3 is a quarter of bfloat16's rounding step.
ORTHOGONALITY_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Rotation:
    """Q = diag(P, ..., P) with P the product of the steps, first to last.

    Attributes:
        steps: each a vector of signs, for a diagonal matrix, or the factors of a Kronecker product;
            float64.
        description: for people.
        repeats: how many times P stands on the diagonal.
    """

    steps: tuple[Signs | Factors, ...]
    description: str
    repeats: int = 1
    _moved: dict[Any, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def block_size(self) -> int:
        """Rows of P."""
        first = self.steps[0]
        return order(first) if isinstance(first, tuple) else first.size

    @property
    def size(self) -> int:
        """Rows of Q."""
        return self.block_size * self.repeats

    @cached_property
    def inverse(self) -> Rotation:
        """Q^T."""
        steps = tuple(
            tuple(np.ascontiguousarray(f.T) for f in step) if isinstance(step, tuple) else step
            for step in reversed(self.steps)
        )
        return Rotation(steps, f"inverse of {self.description}", self.repeats)

    def repeated(self, times: int) -> Rotation:
        """The block-diagonal rotation of this one `times` over, one for each head for example."""
        return replace(self, repeats=self.repeats * times)

    def apply(self, x: Array) -> Array:
        """X Q for x [rows, size], float32 or float64, in that dtype and on that device."""
        return _in_numpy(self._apply, x)

    def apply_left(self, w: Array) -> Array:
        """Q^T w = (w^T Q)^T for w [size, columns], float32 or float64: a band of columns will do.

        The result and one intermediate take w's memory each.
        """
        return _in_numpy(self._apply_left, w)

    def matrix(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows start to stop of Q, [stop - start, size] float64."""
        rows = np.zeros(((self.size if stop is None else stop) - start, self.size))
        np.fill_diagonal(rows[:, start:], 1.0)
        return self.apply(rows)

    def unnormalised(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows of sqrt(block size) Q, as compressed-tensors saves them: +1 and -1 for Hadamard."""
        rows = self.matrix(start, stop)
        rows *= sqrt(self.block_size)
        return np.rint(rows, out=rows) if self.is_hadamard else rows

    @property
    def is_hadamard(self) -> bool:
        """Whether all entries of P have the same magnitude."""
        products = [step for step in self.steps if isinstance(step, tuple)]
        return len(products) == 1 and all(
            np.abs(factor).min() == np.abs(factor).max() for factor in products[0]
        )

    def _apply(self, x: Array) -> Array:
        steps = self._steps(x)
        blocks = x.reshape(x.shape[0] * self.repeats, self.block_size)
        rows = max(1, _BLOCK_ELEMENTS // self.block_size)
        if isinstance(blocks, np.ndarray) and len(blocks) > rows:
            out = np.empty(blocks.shape, blocks.dtype)
            for start in range(0, len(blocks), rows):
                source = blocks[start : start + rows, :, np.newaxis]
                out[start : start + rows] = _turn(steps, source)[:, :, 0]
            return out.reshape(x.shape)
        return _turn(steps, blocks[:, :, None]).reshape(x.shape)

    def _apply_left(self, w: Array) -> Array:
        blocks = w.reshape(self.repeats, self.block_size, w.shape[1])
        return _turn(self._steps(w), blocks).reshape(w.shape)

    def _steps(self, like: Array) -> tuple[Any, ...]:
        """The steps as arrays or tensors like another, made once."""
        key = like.dtype if isinstance(like, np.ndarray) else (like.device, like.dtype)
        if key not in self._moved:
            self._moved[key] = tuple(
                tuple(_as(like, factor) for factor in merged(step))
                if isinstance(step, tuple)
                else _as(like, step)
                for step in self.steps
            )
        return self._moved[key]


def from_matrix(matrix: Tensor) -> Rotation:
    """A rotation by a dense orthogonal [n, n] matrix of floats.

    Raises:
        ValueError: it is not square, or Q Q^T is not the identity.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise ValueError(f"a rotation is a square matrix, not of shape {list(matrix.shape)}")
    values: Floats = matrix.cpu().double().resolve_neg().numpy()
    with np.errstate(all="ignore"):  # infinities make it NaN
        deviation = float(np.abs(values @ values.T - np.eye(len(values))).max())
    if not deviation <= ORTHOGONALITY_TOLERANCE:
        raise ValueError(
            f"not orthogonal: Q Q^T differs from the identity by up to {deviation:.1e}, "
            f"more than {ORTHOGONALITY_TOLERANCE:.0e}"
        )
    return Rotation(((values,),), f"given matrix {len(values)}")


def _in_numpy(apply: Callable[[Any], Any], x: Array) -> Array:
    """apply(x), of a tensor on a CPU as an array.

    For many small matrices numpy's OpenBLAS takes half the time of torch's MKL (two threads of an
    AVX-512 core from AMD).
    """
    result: Array
    if isinstance(x, np.ndarray) or x.device.type != "cpu":
        result = apply(x)
        return result
    import torch

    with np.errstate(all="ignore"):  # infinities show in the result
        result = torch.from_numpy(apply(x.numpy()))
    return result


def _as(like: Array, step: Floats) -> Array:
    """A step's numbers in the dtype of another array, and on its device."""
    if isinstance(like, np.ndarray):
        return step.astype(like.dtype)
    import torch

    return torch.from_numpy(step).to(like)


def _turn(steps: tuple[Any, ...], x: Array) -> Array:
    """P^T x for x [batch, n, columns]."""
    for step in steps:
        # A diagonal matrix keeps how x lies in memory.
        x = transposed_times(step, x) if isinstance(step, tuple) else x * step[:, None]
    return x
