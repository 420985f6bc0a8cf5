"""The named schemes of compressed-tensors 0.19 and 0.20 that quantize weights."""

from __future__ import annotations

from dataclasses import replace

from ctcli.schemes import default_format
from ctcli.schemes.arguments import QuantizationArgs, Scheme

_TOKENS_INT8 = QuantizationArgs(8, "int", "token", dynamic=True)
_TOKENS_INT4 = QuantizationArgs(4, "int", "token", dynamic=True)
_TOKENS_FP8 = QuantizationArgs(8, "float", "token", dynamic=True)
_FP8_CHANNEL = QuantizationArgs(8, "float", "channel")
_FP8_TENSOR = QuantizationArgs(8, "float", "tensor")
_FP8_BLOCK = QuantizationArgs(8, "float", "block", block_structure=(128, 128))
_FP8_GROUPS = QuantizationArgs(8, "float", "group", group_size=128, dynamic=True)
_INT8_CHANNEL = QuantizationArgs(8, "int", "channel")
_NVFP4 = QuantizationArgs(
    4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn"
)
_MXFP4 = QuantizationArgs(4, "float", "group", group_size=32, scale_dtype="torch.uint8")
_MXFP6 = QuantizationArgs(6, "float", "group", group_size=32, scale_dtype="torch.uint8")
_MXFP8 = QuantizationArgs(8, "float", "group", group_size=32, scale_dtype="torch.uint8")


def _int_groups(bits: int) -> QuantizationArgs:
    return QuantizationArgs(bits, "int", "group", group_size=128)


_ARGUMENTS: dict[str, tuple[QuantizationArgs, QuantizationArgs | None]] = {
    "FP8": (_FP8_TENSOR, _FP8_TENSOR),
    "FP8_DYNAMIC": (_FP8_CHANNEL, _TOKENS_FP8),
    "FP8_BLOCK": (_FP8_BLOCK, _FP8_GROUPS),
    "W8A8": (_INT8_CHANNEL, _TOKENS_INT8),
    "INT8": (_INT8_CHANNEL, _TOKENS_INT8),
    **{f"W{bits}A16": (_int_groups(bits), None) for bits in range(2, 9)},
    "W4A16_ASYM": (replace(_int_groups(4), symmetric=False), None),
    **{f"W{bits}A8": (_int_groups(bits), _TOKENS_INT8) for bits in range(2, 8)},
    **{f"W{bits}A4": (_int_groups(bits), _TOKENS_INT4) for bits in range(2, 5)},
    "W4AFP8": (_int_groups(4), _TOKENS_FP8),
    "NVFP4A16": (_NVFP4, None),
    "NVFP4": (_NVFP4, replace(_NVFP4, dynamic="local")),
    "MXFP4A16": (_MXFP4, None),
    "MXFP4": (_MXFP4, replace(_MXFP4, dynamic=True)),
    "MXFP4XFP8": (_MXFP4, _FP8_GROUPS),
    "MXFP6A16": (_MXFP6, None),
    "MXFP6A8": (_MXFP6, replace(_MXFP8, dynamic=True)),
    "MXFP8A16": (_MXFP8, None),
    "MXFP8": (_MXFP8, replace(_MXFP8, dynamic=True)),
}
PRESETS = tuple(_ARGUMENTS)


def preset(name: str) -> Scheme:
    """The scheme of that name, in any case.

    Raises:
        KeyError: there is none.
    """
    name = name.upper()
    weights, inputs = _ARGUMENTS[name]
    return Scheme(name, weights, inputs, default_format(weights, inputs))
