"""Transforms that a server applies while it runs: their matrices, and what config.json says.

compressed-tensors' `transform_config`: a scheme for each rotation, saying where it is applied;
matrices are saved once for each scheme and size, beside the first module that uses them, in float64
and not normalised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctcli.lazy.nodes import Computed, LazyTensor, Node, Output, Where
from ctcli.lazy.tensors import TensorSpec
from ctcli.rewrites.quantizing.config import VERSIONS

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks
    from ctcli.ops.rotation import Rotation


def apply(
    modules: Iterable[str], location: str, inverse: bool = False, ignore: Iterable[str] = ()
) -> dict[str, Any]:
    """Where a scheme is applied: to all modules of these modules' own names but the ignored."""
    names = dict.fromkeys(module.rpartition(".")[2] for module in modules)
    targets = [f"re:.*{name}$" for name in names]
    return {"targets": targets, "location": location, "inverse": inverse, "ignore": [*ignore]}


def scheme(
    transform_type: str, block_size: int | None, places: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A scheme of `transform_config`.

    Args:
        transform_type: `hadamard`, whose matrix a server makes itself, or another, which it reads.
        block_size: of a block-diagonal matrix.
        places: where it is applied.
    """
    return {
        "type": transform_type,
        "apply": [dict(place) for place in places],
        "randomize": False,
        "requires_grad": False,
        "head_dim": block_size,
        "precision": "torch.float64",
    }


def transforming(
    config: Mapping[str, Any], schemes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """config.json of an unquantized checkpoint with such schemes."""
    declared = {
        "config_groups": {},
        "format": "dense",
        "ignore": [],
        "quant_method": "compressed-tensors",
        "quantization_status": "frozen",
        "transform_config": {"config_groups": dict(schemes)},
        "version": VERSIONS["0.19"],
    }
    return {**config, "quantization_config": declared}


def matrix(name: str, rotation: Rotation) -> dict[str, LazyTensor]:
    """The matrix of a transform, [n, n] float64, as tensor `<name>.weight`.

    Args:
        name: `<module>.<scheme>_<location>`.
        rotation: P, not repeated.
    """
    n = rotation.block_size
    outputs = {"weight": Output(TensorSpec("F64", (n, n)))}
    node = Node(f"{name}/weight/matrix", name, (n, n), {}, outputs, Unnormalised(rotation))
    return {f"{name}.weight": Computed(node, "weight")}


@dataclass(frozen=True, eq=False)
class Unnormalised:
    """Rows of a rotation's matrix as compressed-tensors saves them."""

    rotation: Rotation

    def __call__(self, _blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        return {"weight": self.rotation.unnormalised(where.start, where.stop)}, ()
