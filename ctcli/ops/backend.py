"""Where arithmetic runs: compiled on the CPU, or with torch on another device.

Only `cpu` itself means the compiled bodies; any other name is torch's, `cpu:0` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctcli.ops.quantized import Body

if TYPE_CHECKING:
    from numpy.typing import NDArray


def body(device: str) -> Body:
    """The arithmetic of quantizing on a device."""
    if device == "cpu":
        from ctcli.ops.blocks import Compiled

        return Compiled()
    from ctcli.ops.device.blocks import Torch

    return Torch(device)


def on_device(block: NDArray[Any], device: str) -> Any:
    """A block of floats as what is computed with: itself, or a tensor of torch's on a device."""
    if device == "cpu":
        return block
    from ctcli.ops.device.edits import moved

    return moved(block, f"F{8 * block.itemsize}", device)


def on_host(block: Any) -> NDArray[Any]:
    """A block as an array."""
    import numpy as np

    if isinstance(block, np.ndarray):
        return block
    host: NDArray[Any] = block.cpu().numpy()
    return host
