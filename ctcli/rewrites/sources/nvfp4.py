"""MXFP4 as NVFP4 with the same numbers: codes stay, powers of two become E4M3 under a global scale.

Of a fused set, with its largest power 2**k, the global scale is 2**(8 - k), by which servers
divide; a group of 32 becomes two of 16, whose scale is its own power times that. E4M3 has powers
from 2**-9 to 2**8, so that this is exact where the powers of a set lie at most 17 apart. Method:
https://github.com/NVIDIA/Model-Optimizer, `modelopt/torch/quantization/utils/numeric_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.packed import made
from ctcli.lazy.nodes import (
    Computed,
    ContentError,
    Input,
    LazyTensor,
    Node,
    NonFiniteError,
    Output,
    Where,
)
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.fused import fused_sets
from ctcli.schemes.presets import preset
from ctcli.schemes.weights import value

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks

_APART = 17  # what the exponents of E4M3 span
_HIGHEST = 8
_HINT = "Leave --to away, or quantize it anew with ctcli quantize --scheme NVFP4A16."


def is_mxfp4(coded: Coded) -> bool:
    """Whether a weight is MXFP4 to compressed-tensors."""
    return coded.scheme is not None and coded.scheme.format == "mxfp4-pack-quantized"


def as_nvfp4(leaves: Sequence[Coded]) -> dict[str, Coded]:
    """The weights among these that are MXFP4, as NVFP4, by name."""
    found = {coded.module: coded for coded in leaves if is_mxfp4(coded)}
    own = {module: value(_largest(coded)) for module, coded in found.items()}
    shared = {module: {module: item} for module, item in own.items()}
    for fused in fused_sets(found):
        members = {module: own[module] for module in fused.tensors}
        shared |= dict.fromkeys(members, members)
    return {
        coded.name: replace(
            coded, scheme=preset("NVFP4A16"), stored=_stored(coded, shared[coded.module])
        )
        for coded in found.values()
    }


def _stored(coded: Coded, largest: Mapping[str, Input]) -> dict[str, LazyTensor]:
    """The tensors of a weight, whose fused set has these largest exponents."""
    codes, scale = coded.stored["weight_packed"], coded.stored["weight_scale"]
    rows, groups = scale.spec.shape
    shape = rows, 2 * groups
    inputs = {
        "codes": Input(codes, (rows, 16 * groups), each=(1, 16)),
        "scale": Input(scale, (rows, groups), each=(1, 1)),
    }
    total = Node(
        key=f"{coded.module}/weight_global_scale/convert",
        module=coded.module,
        shape=(1, 1),
        inputs=largest,
        outputs={"scale": Output(TensorSpec("F32", (1,)), is_whole=True)},
        kernel=GlobalScale(),
    )
    return {
        "weight_packed": codes,
        "weight_scale": made(
            coded.module,
            {"weight_scale": TensorSpec("F8_E4M3", shape)},
            {**inputs, **largest},
            GroupScales(),
            (shape, (1, 2)),
        ),
        "weight_global_scale": Computed(total, "scale"),
    }


def _largest(coded: Coded) -> Node:
    """The largest exponent of a weight's groups."""
    scale = coded.stored["weight_scale"]
    rows, groups = scale.spec.shape
    return Node(
        key=f"{coded.module}/weight_scale/largest",
        module=coded.module,
        shape=(rows, groups),
        inputs={"scale": Input(scale, (rows, groups))},
        outputs={"value": Output(TensorSpec("F32", (1,)), is_whole=True)},
        kernel=LargestExponent(),
        combine="max",
    )


@dataclass(frozen=True)
class LargestExponent:
    """The largest biased exponent: a kernel, see `lazy.nodes.Kernel`.

    Groups of zeros have the exponent 0, and do not count so.
    """

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`.

        Raises:
            NonFiniteError: an exponent stands for NaN.
        """
        import numpy as np

        largest = blocks["scale"].max(initial=0)
        if largest == 0xFF:
            raise NonFiniteError("A scale is NaN: repair the checkpoint.")
        return {"value": np.array([largest], np.float32)}, ()


@dataclass(frozen=True)
class GlobalScale:
    """What servers divide by: a kernel. Inputs: the largest exponents of a fused set."""

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`.

        Raises:
            ContentError: float32 has no such number.
        """
        import numpy as np

        exponent = _HIGHEST - _power(blocks)
        if exponent > 127:
            raise ContentError("its scales are too small for a global scale in float32", _HINT)
        return {"scale": np.ldexp(np.float32(1), [exponent]).view(np.uint32)}, ()


@dataclass(frozen=True)
class GroupScales:
    """E4M3 scales of groups of 16: a kernel.

    Inputs: `codes`; `scale`, biased exponents; the largest exponents of the fused set.
    """

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:  # noqa: ARG002
        """See `Kernel`.

        Raises:
            ContentError: a group's exponent is too far from the largest.
        """
        import numpy as np

        codes, scales = blocks["codes"], blocks["scale"].astype(np.int32)
        others = {name: block for name, block in blocks.items() if name not in ("codes", "scale")}
        below = _power(others) + 127 - scales
        is_zero = ~(codes.reshape(*scales.shape, 16) & 0x77).any(axis=2)
        if ((below > _APART) & ~is_zero).any():
            far = int(below[~is_zero].max())
            raise ContentError(
                f"a scale is 2^{far} times as small as the largest of its fused set, and NVFP4's "
                f"scales reach 2^{_APART}",
                _HINT,
            )
        exponent = _HIGHEST - np.minimum(below, _APART)
        found = np.where(exponent < -6, 1 << np.maximum(exponent + 9, 0), (exponent + 7) << 3)
        return {"weight_scale": np.repeat(found.astype(np.uint8), 2, axis=1)}, ()


def _power(blocks: Blocks) -> int:
    """The exponent of the largest power of two; where all groups are zeros, what gives 1."""
    largest = max(int(block.max()) for block in blocks.values())
    return largest - 127 if largest else _HIGHEST
