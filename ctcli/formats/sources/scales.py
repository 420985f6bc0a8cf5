"""Scales that compressed-tensors stores in another way: the same numbers, or their reciprocals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ctcli.lazy.nodes import (
    Computed,
    ContentError,
    Input,
    Node,
    NonFiniteError,
    Output,
    Where,
    matrix_shape,
)
from ctcli.lazy.tensors import Stored, TensorSpec

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks

_HINT = "Repair the checkpoint, or turn it into floats with ctcli dequantize."


@dataclass(frozen=True)
class Reciprocal:
    """One over a float32 scale, rounded to float32: a kernel, see `lazy.nodes.Kernel`."""

    TARGET: ClassVar = "F32"

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`.

        Raises:
            ContentError: it is not finite, or not above zero.
        """
        import numpy as np

        with np.errstate(divide="ignore", over="ignore"):
            found = np.float32(1) / blocks["scale"].view(np.float32)
        if not (np.isfinite(found) & (found > 0)).all():
            raise ContentError("a scale is zero, negative, NaN or infinite", _HINT)
        return {"scale": found.reshape(-1).view(np.uint32)}, ()


@dataclass(frozen=True)
class Exponents:
    """Float32 powers of two as biased exponents: a kernel, see `lazy.nodes.Kernel`."""

    TARGET: ClassVar = "U8"

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`.

        Raises:
            NonFiniteError: a scale is infinite or NaN.
            ContentError: a scale is no power of two.
        """
        import numpy as np

        bits = blocks["scale"].view(np.uint32)
        # What is left of the exponent, 2^-127, has none of its own.
        least = bits == np.uint32(0x00400000)
        exponents = bits >> np.uint32(23)
        if (exponents & np.uint32(0xFF) == 0xFF).any():
            raise NonFiniteError(_HINT)
        if ((bits & np.uint32(0x807FFFFF) != 0) & ~least).any() or (bits == 0).any():
            raise ContentError("a scale is not a power of two", _HINT)
        return {"scale": exponents.astype(np.uint8)}, ()


@dataclass(frozen=True)
class Powers:
    """Powers of two from biased exponents, as float32: a kernel, see `lazy.nodes.Kernel`."""

    TARGET: ClassVar = "F32"

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`.

        Raises:
            NonFiniteError: an exponent stands for NaN.
        """
        import numpy as np

        from ctcli.ops.decoding import scales_of

        found = scales_of(blocks["scale"], "U8")
        if np.isnan(found).any():
            raise NonFiniteError(_HINT)
        return {"scale": found}, ()


def scaled(
    module: str, suffix: str, scale: Stored, kernel: Reciprocal | Exponents | Powers
) -> Computed:
    """A tensor of scales for compressed-tensors.

    Args:
        module: its module.
        suffix: its name below it.
        scale: what it is computed from; one number gets the shape [1].
        kernel: how.
    """
    shape = matrix_shape(scale.spec.shape)
    is_one = shape == (1, 1) and isinstance(kernel, Reciprocal)
    spec = TensorSpec(kernel.TARGET, (1,) if is_one else scale.spec.shape)
    node = Node(
        key=f"{module}/{suffix}/convert",
        module=module,
        shape=shape,
        inputs={"scale": Input(scale, shape)},
        outputs={"scale": Output(spec, is_whole=is_one)},
        kernel=kernel,
    )
    return Computed(node, "scale")
