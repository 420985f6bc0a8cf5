"""Random numbers as torch draws them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ctcli.ops.bits import Floats


class Draws:
    """A generator, which every draw advances; torch is loaded with the first one.

    Args:
        seed: None: compressed-tensors' own, which is torch's constant 67280421310721.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed

    @cached_property
    def generator(self) -> torch.Generator:
        """Torch's."""
        import torch

        generator = torch.Generator()
        return generator if self._seed is None else generator.manual_seed(self._seed)

    def signs(self, n: int) -> Floats:
        """+1 and -1 as compressed-tensors draws them, [n] float64."""
        import torch

        drawn = torch.randint(0, 2, (n,), generator=self.generator, dtype=torch.float64)
        signs: Floats = (drawn * 2 - 1).numpy()
        return signs

    def normal(self, n: int) -> Floats:
        """Of the standard normal distribution, [n, n] float64."""
        import torch

        drawn: Floats = torch.randn(n, n, generator=self.generator, dtype=torch.float64).numpy()
        return drawn
