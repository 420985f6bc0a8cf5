"""Random numbers, the same as torch's CPU generator draws from the same seed, without torch.

Both draw from MT19937 (Matsumoto and Nishimura 1998) and seed it alike with the low 32 bits of the
seed. What torch makes of its words is in ATen/core/DistributionsHelper.h and
ATen/native/cpu/DistributionTemplates.h.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ctcli.ops.bits import Floats

DEFAULT_SEED = 67280421310721
"""Of a torch.Generator that is not seeded, which is what compressed-tensors draws from."""

# torch fills 16 elements and more in blocks of 16, whose first halves are the radii's.
_BLOCK, _HALF = 16, 8


class Draws:
    """A generator, which every draw advances.

    Args:
        seed: any integer; None: torch's own constant, DEFAULT_SEED.
    """

    def __init__(self, seed: int | None) -> None:
        low = (DEFAULT_SEED if seed is None else seed) & 0xFFFFFFFF
        self._source = np.random.RandomState(low)
        self._spare: float | None = None

    def signs(self, n: int) -> Floats:
        """+1 and -1 as compressed-tensors draws them, [n] float64.

        They are torch.randint(0, 2, (n,), dtype=torch.float64) * 2 - 1 to the bit.
        """
        return (self._words(n) & 1) * 2.0 - 1

    def normal(self, n: int) -> Floats:
        """Values of the standard normal distribution, [n, n] float64.

        They are torch.randn(n, n, dtype=torch.float64), to the bit where both use the same C
        library for logarithms, sines and cosines (numpy's own depend on the processor); two such
        libraries differ by some units in the last place of a factor, 1e-15 times the value or so.
        """
        size = n * n
        if size < _BLOCK:
            return np.array([self._one_normal() for _ in range(size)]).reshape(n, n)
        values = _box_muller(self._uniform(size))
        if size % _BLOCK:  # the last 16 are drawn once more, together
            values[-_BLOCK:] = _box_muller(self._uniform(_BLOCK))
        return values.reshape(n, n)

    def _uniform(self, n: int) -> Floats:
        """Multiples of 2**-53 in [0, 1): [n] float64, two words each, the high one first."""
        words = self._words(2 * n)
        joined = words[::2] << np.uint64(32) | words[1::2]
        return (joined & np.uint64(2**53 - 1)) * 2.0**-53

    def _words(self, n: int) -> NDArray[np.uint64]:
        """The generator's next words of 32 bits, [n]."""
        return self._source.randint(0, 1 << 32, n, np.uint64)

    def _one_normal(self) -> float:
        """One value; every second is the other one of a pair, whatever is drawn between them."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        turn, uniform = self._uniform(2).tolist()
        radius, angle = math.sqrt(-2 * math.log1p(-uniform)), 2 * math.pi * turn
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller(uniform: Floats) -> Floats:
    """Normal values of uniform ones, [n] float64: Box and Muller (1958), in blocks of 16.

    Elements beyond the last whole block stay uniform.
    """
    values = uniform.copy()
    blocks = values[: values.size // _BLOCK * _BLOCK].reshape(-1, 2, _HALF)
    logarithms = [math.log(x) for x in (1 - blocks[:, 0]).ravel().tolist()]
    angles = (2 * math.pi * blocks[:, 1]).ravel().tolist()
    radii = np.sqrt(-2 * np.array(logarithms))
    for half, turn in enumerate((math.cos, math.sin)):
        turned = radii * np.array([turn(angle) for angle in angles])
        blocks[:, half] = turned.reshape(-1, _HALF)
    return values
