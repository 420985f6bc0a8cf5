"""From quantized tensors of torch back to weights, as readers compute them, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import to_bits
from ctcli.schemes import format_of
from ctcli.schemes.arguments import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Restored:
    """Some rows of a weight, or some columns.

    Attributes:
        values: [rows, columns] float32.
        bounds: by group, as `Grouping` has it: the sum of the squares of half the step at each
            value, which is the largest error that rounding to the nearest leaves; float32.
    """

    values: Tensor
    bounds: Tensor


def restore(scheme: Scheme, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Restored:
    """Compute weights from what stands for them.

    Args:
        scheme: how they are quantized.
        tensors: by suffix: those rows (or columns) that belong to the weights.
        shape: of the weights, [rows, columns].
    """
    import torch

    tags = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    bits = {suffix: to_bits(tensor) for suffix, tensor in tensors.items()}
    dtype = tags.get(tensors["weight_scale"].dtype, "BF16")
    found = format_of(scheme).decode(bits, shape, scheme, dtype)
    down, across = found.bounds.shape
    bounds = torch.from_numpy(found.bounds).view(down, 1, across, 1)
    return Restored(torch.from_numpy(found.values), bounds)
