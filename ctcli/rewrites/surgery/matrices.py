"""The matrices of a run of `rotate`: made for each size, or read from a file of learned ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture, AttentionRole

if TYPE_CHECKING:
    import torch

    from ctcli.ops.draws import Draws
    from ctcli.ops.rotation import Rotation

TransformType = Literal["hadamard", "random-hadamard", "random-matrix", "learned"]


def made(
    scheme: str,
    transform_type: str,
    size: int,
    draws: Draws,
    block_size: int | None = None,
    keeps_ones: bool = False,
) -> Rotation:
    """A rotation as `make_rotation` makes it, for the scheme of that name.

    Raises:
        CtcliError: there is none of this size.
    """
    from ctcli.ops.transforms import make_rotation

    try:
        return make_rotation(
            transform_type, size, draws, block_size=block_size, keeps_ones=keeps_ones
        )
    except ValueError as error:
        raise CtcliError(
            f"{scheme}: {error}.", "Give another block size, or leave this rotation out."
        ) from error


class Matrices:
    """The rotations of a run, each made once.

    Args:
        architecture: of the model.
        transform_type: where they come from.
        seed: of the random ones; None: compressed-tensors' own constant.
        randomize: R2 has a matrix of its own in each attention block.
        block_size: of R1 and R4; None: all coordinates together.
        learned: matrices by name, `R1` and `<attention>.R2`, in place of made ones.
    """

    def __init__(
        self,
        architecture: Architecture,
        transform_type: TransformType,
        seed: int | None,
        randomize: bool,
        block_size: int | None,
        learned: Mapping[str, torch.Tensor] | None,
    ) -> None:
        self._hidden_size = architecture.hidden_size
        self._keeps_ones = architecture.norm_kind == "layer"
        self._transform_type = transform_type
        self._seed = seed
        self._randomize = randomize
        self._block_size = block_size
        self._learned = learned
        self._made: dict[str, Rotation] = {}

    def stream(self) -> Rotation:
        """R1."""
        return self._get("R1", "R1", self._hidden_size, self._block_size)

    def values(self, attention: AttentionRole) -> Rotation:
        """R2 of one attention block."""
        own = self._randomize or self._learned is not None
        name = f"{attention.module}.R2" if own else f"R2 of {attention.v.size}"
        return self._get(name, "R2", attention.v.size, None)

    def inner(self, size: int) -> Rotation:
        """R4 of so many coordinates."""
        return self._online("R4", size, self._block_size)

    def keys(self, size: int) -> Rotation:
        """R3 of heads of that size."""
        return self._online("R3", size, None)

    def _online(self, scheme: str, size: int, block: int | None) -> Rotation:
        rotation = self._make(scheme, size, block)
        if not rotation.is_hadamard:
            raise CtcliError(
                f"{scheme}: {rotation.description} of size {size} is no Hadamard matrix, and "
                "readers of online rotations take no other.",
                "Give --transform-type hadamard or random-hadamard, and a --block-size that has "
                "one (a power of two).",
            )
        return rotation

    def _get(self, name: str, scheme: str, size: int, block: int | None) -> Rotation:
        if name not in self._made:
            if self._learned is not None:
                self._made[name] = self._given(name, size)
            else:
                self._made[name] = self._make(scheme, size, block, name)
        return self._made[name]

    def _make(self, scheme: str, size: int, block: int | None, name: str | None = None) -> Rotation:
        from ctcli.ops.draws import Draws
        from ctcli.ops.transforms import seed_for

        seed = self._seed
        if self._randomize and scheme == "R2":
            seed = seed_for(seed, name or scheme)
        keeps_ones = scheme == "R1" and self._keeps_ones
        return made(scheme, self._transform_type, size, Draws(seed), block, keeps_ones)

    def _given(self, name: str, size: int) -> Rotation:
        import numpy as np

        from ctcli.ops.rotation import ORTHOGONALITY_TOLERANCE, from_matrix

        matrices = self._learned or {}
        hint = (
            "Give a file with R1 [hidden, hidden] and <attention>.R2 [head, head] for each layer."
        )
        if name not in matrices:
            raise CtcliError(f"{name}: not in the rotation file.", hint)
        try:
            rotation = from_matrix(matrices[name])
        except ValueError as error:
            raise CtcliError(f"{name}: {error}.", hint) from error
        if rotation.size != size:
            raise CtcliError(f"{name}: it rotates {rotation.size} coordinates, not {size}.", hint)
        ones = np.ones((1, size))
        moved = float(np.abs(rotation.apply(ones) - ones).max())
        if name == "R1" and self._keeps_ones and moved > ORTHOGONALITY_TOLERANCE:
            raise CtcliError(
                f"{name}: a LayerNorm subtracts the mean, which this one moves by {moved:.1e}.",
                "Such models need a rotation that keeps the vector of ones; leave R1 out.",
            )
        return rotation
