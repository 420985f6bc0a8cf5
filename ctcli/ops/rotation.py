"""Rotations: orthogonal matrices Q, block-diagonal, made of Kronecker products and signs.

A Hadamard matrix spreads every coordinate evenly over all (QuaRot, Ashkboos et al. 2024; SpinQuant,
Liu et al. 2024). Small factors are fastest, the last one of 16 or more: 8 (x) 16 (x) 16 takes four
fifths of the time of 32 (x) 64, and a butterfly's eleven passes take more (2048 columns, one
AVX-512 core).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from ctcli.ops.kronecker import merged, order, transposed_times

# Elements of a block of rows: on a CPU its temporaries stay in cache; an accelerator wants fewer
# and larger products.
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 19, 1 << 24

# A matrix that was learned in float32 and saved deviates by 1e-6 to 1e-4. A deviation e changes
# weights by about e relative to their size: 1e-3 is a quarter of bfloat16's rounding step.
ORTHOGONALITY_TOLERANCE = 1e-3

Signs = Tensor
Factors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Rotation:
    """Q = diag(P, ..., P) with P the product of the steps, first to last.

    Attributes:
        steps: each a vector of signs, for a diagonal matrix, or the factors of a Kronecker product;
            float64, on the CPU.
        description: for people.
        repeats: how many times P stands on the diagonal.
    """

    steps: tuple[Signs | Factors, ...]
    description: str
    repeats: int = 1
    _moved: dict[tuple[torch.device, torch.dtype], tuple[Signs | Factors, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def block_size(self) -> int:
        """Rows of P."""
        first = self.steps[0]
        return first.numel() if isinstance(first, Tensor) else order(first)

    @property
    def size(self) -> int:
        """Rows of Q."""
        return self.block_size * self.repeats

    @cached_property
    def inverse(self) -> Rotation:
        """Q^T."""
        steps = tuple(
            step if isinstance(step, Tensor) else tuple(factor.T.contiguous() for factor in step)
            for step in reversed(self.steps)
        )
        return Rotation(steps, f"inverse of {self.description}", self.repeats)

    def repeated(self, times: int) -> Rotation:
        """The block-diagonal rotation of this one `times` over, one for each head for example."""
        return replace(self, repeats=self.repeats * times)

    def apply(self, x: Tensor) -> Tensor:
        """X Q for x [rows, size], float32 or float64, in that dtype and on that device."""
        steps = self._steps(x)
        blocks = x.reshape(x.shape[0] * self.repeats, self.block_size)
        elements = _CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK
        rows = max(1, elements // self.block_size)
        if len(blocks) <= rows:
            return _turn(steps, blocks.unsqueeze(2)).view(x.shape)
        out = torch.empty(blocks.shape, dtype=x.dtype, device=x.device)
        for start in range(0, len(blocks), rows):
            source = blocks[start : start + rows]
            out[start : start + rows] = _turn(steps, source.unsqueeze(2)).squeeze(2)
        return out.view(x.shape)

    def apply_left(self, w: Tensor) -> Tensor:
        """Q^T w = (w^T Q)^T for w [size, columns], float32 or float64: a band of columns will do.

        The result and one intermediate take w's memory each.
        """
        blocks = w.reshape(self.repeats, self.block_size, w.shape[1])
        return _turn(self._steps(w), blocks).reshape(w.shape)

    def matrix(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop of Q, [stop - start, size] float64."""
        stop = self.size if stop is None else stop
        rows = torch.zeros(stop - start, self.size, dtype=torch.float64)
        rows.diagonal(start).fill_(1.0)
        return self.apply(rows)

    def unnormalised(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of sqrt(block size) Q, as compressed-tensors saves them: +1 and -1 for Hadamard."""
        rows = self.matrix(start, stop).mul_(sqrt(self.block_size))
        return rows.round_() if self.is_hadamard else rows

    @property
    def is_hadamard(self) -> bool:
        """Whether all entries of P have the same magnitude."""
        products = [step for step in self.steps if not isinstance(step, Tensor)]
        return len(products) == 1 and all(
            factor.abs().min() == factor.abs().max() for factor in products[0]
        )

    def _steps(self, like: Tensor) -> tuple[Signs | Factors, ...]:
        """The steps on the tensor's device and in its dtype, made once."""
        key = like.device, like.dtype
        if key not in self._moved:
            self._moved[key] = tuple(
                step.to(like)
                if isinstance(step, Tensor)
                else tuple(f.to(like) for f in merged(step))
                for step in self.steps
            )
        return self._moved[key]


def from_matrix(matrix: Tensor) -> Rotation:
    """A rotation by a dense orthogonal [n, n] matrix of floats.

    Raises:
        ValueError: it is not square, or Q Q^T is not the identity.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a rotation is a square matrix, not of shape {list(matrix.shape)}")
    matrix = matrix.to("cpu", torch.float64)
    deviation = float((matrix @ matrix.T - torch.eye(matrix.shape[0])).abs().max())
    if not deviation <= ORTHOGONALITY_TOLERANCE:
        raise ValueError(
            f"not orthogonal: Q Q^T differs from the identity by up to {deviation:.1e}, "
            f"more than {ORTHOGONALITY_TOLERANCE:.0e}"
        )
    return Rotation(((matrix,),), f"given matrix {matrix.shape[0]}")


def _turn(steps: tuple[Signs | Factors, ...], x: Tensor) -> Tensor:
    """P^T x for x [batch, n, columns]."""
    for step in steps:
        # A diagonal matrix keeps how x lies in memory.
        x = x * step.unsqueeze(1) if isinstance(step, Tensor) else transposed_times(step, x)
    return x
