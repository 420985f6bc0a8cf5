"""What `ops.edits` does, with torch, for devices other than the CPU: the same borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ctcli.ops.device.rounding import round_once
from ctcli.ops.device.sums import largest_along

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctcli.ops.bits import Bits, Floats

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def edited(
    block: NDArray[Any],
    tag: str,
    target: str,
    *,
    gain: Floats | None,
    divides: bool,
    by_row: Floats | None,
    in_float32: bool,
    device: str,
) -> tuple[Bits, bool]:
    """See `ops.edits.edited`."""
    x = moved(block, tag, device).to(torch.float32 if in_float32 else torch.float64)
    if gain is not None:
        factors = torch.from_numpy(gain).to(x)
        x = x / factors if divides else x * factors
    if by_row is not None:
        x = x * torch.from_numpy(by_row).to(x)[:, None]
    result = round_once(x, _DTYPES[target])
    is_finite = not result.numel() or bool(largest_along(result.reshape(-1), 0).isfinite())
    stored = result.cpu().contiguous()
    bits: Bits = stored.view(getattr(torch, f"uint{8 * stored.element_size()}")).numpy()
    return bits, is_finite


def projected(
    block: NDArray[Any], tag: str, vector: Floats, bias: Floats | None, device: str
) -> NDArray[np.float64]:
    """See `ops.edits.projected`."""
    factors = torch.from_numpy(vector).to(device, torch.float64)
    result = (moved(block, tag, device).to(torch.float64) @ factors).cpu().numpy()
    return result if bias is None else result + bias


def moved(block: NDArray[Any], tag: str, device: str) -> Tensor:
    """A block as a tensor on a device."""
    return torch.from_numpy(block).view(_DTYPES[tag]).to(device)
