"""Rotations: orthogonal matrices Q, block-diagonal, made of Kronecker products and signs.

A Hadamard matrix spreads every coordinate evenly over all (QuaRot, Ashkboos et al. 2024; SpinQuant,
Liu et al. 2024). Arrays go through the stages of `ops.stages`; tensors on other devices through
products with the factors, for which small ones are fastest, the last one of 16 or more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from ctcli.ops.kronecker import Array, merged, order, transposed_times

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from torch import Tensor

    from ctcli.ops.bits import Floats
    from ctcli.ops.stages import Stages
    from ctcli.ops.walsh import RowTransform

    Signs = Floats
    Factors = tuple[Floats, ...]

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
    _stages: dict[Any, Stages] = field(default_factory=dict, init=False, repr=False)
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

    def resized(self, size: int) -> Rotation:
        """The block-diagonal rotation of so many coordinates."""
        return replace(self, repeats=size // self.block_size)

    def apply(self, x: Array, out: Floats | None = None) -> Array:
        """X Q for x [rows, size], float32 or float64, in that dtype and on that device.

        Args:
            x: any rows. What a row becomes does not depend on the others.
            out: where an array's result goes, C-contiguous; x itself will do; None: a new array.
        """
        if isinstance(x, np.ndarray):
            self._check_size(x.shape, 1)
            return self._in_stages("apply", x, out)
        if x.device.type == "cpu":
            return _as_tensor(self.apply(x.numpy()))
        blocks = x.reshape(x.shape[0] * self.repeats, self.block_size, 1)
        return _turn(self._tensors(x), blocks).reshape(x.shape)

    def apply_left(self, w: Array, out: Floats | None = None) -> Array:
        """Q^T w = (w^T Q)^T for w [size, columns], float32 or float64: a band of columns will do.

        Where not all factors are Sylvester's, an intermediate takes w's memory.

        Args:
            w: any columns. What a column becomes does not depend on the others.
            out: as for `apply`.
        """
        if isinstance(w, np.ndarray):
            self._check_size(w.shape, 0)
            return self._in_stages("apply_left", w, out)
        if w.device.type == "cpu":
            return _as_tensor(self.apply_left(w.numpy()))
        blocks = w.reshape(self.repeats, self.block_size, w.shape[1])
        return _turn(self._tensors(w), blocks).reshape(w.shape)

    def of_rows(self, dtype: DTypeLike) -> RowTransform | None:
        """X Q as one fast transform of each row, float32 or float64; None: it is more than that."""
        return self._stages_in(dtype).of_rows(self.repeats)

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

    def _check_size(self, shape: tuple[int, ...], axis: int) -> None:
        if shape[axis] != self.size:
            raise ValueError(f"cannot rotate the {shape[axis]} coordinates of {shape}: {self.size}")

    def _in_stages(self, name: str, x: Floats, out: Floats | None) -> Floats:
        """A method of `Stages`, on x or a C-contiguous copy of it."""
        source = np.ascontiguousarray(x)
        result = np.empty(x.shape, x.dtype) if out is None else out
        with np.errstate(all="ignore"):  # infinities show in the result
            getattr(self._stages_in(x.dtype), name)(source, result)
        return result

    def _stages_in(self, dtype: DTypeLike) -> Stages:
        from ctcli.ops.stages import stages_of  # loads kernels, which plans do without

        key = np.dtype(dtype)
        if key not in self._stages:
            self._stages[key] = stages_of(self.steps, self.block_size, key)
        return self._stages[key]

    def _tensors(self, like: Tensor) -> tuple[Any, ...]:
        """The steps as tensors like another, made once."""
        import torch

        key = (like.device, like.dtype)
        if key not in self._moved:
            self._moved[key] = tuple(
                tuple(torch.from_numpy(factor).to(like) for factor in merged(step))
                if isinstance(step, tuple)
                else torch.from_numpy(step).to(like)
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


def _as_tensor(x: Floats) -> Tensor:
    import torch

    return torch.from_numpy(x)


def _turn(steps: tuple[Any, ...], x: Tensor) -> Tensor:
    """P^T x for x [batch, n, columns]."""
    for step in steps:
        # A diagonal matrix keeps how x lies in memory.
        x = transposed_times(step, x) if isinstance(step, tuple) else x * step[:, None]
    return x
