"""Which body does the arithmetic of quantizing: compiled on the CPU, torch's on other devices."""

from __future__ import annotations

from ctcli.ops.quantized import Body


def body(device: str) -> Body:
    """The arithmetic on a device.

    Args:
        device: torch's name of it; only `cpu` itself means the compiled body.
    """
    if device == "cpu":
        from ctcli.ops.blocks import Compiled

        return Compiled()
    from ctcli.ops.device.blocks import Torch

    return Torch(device)
