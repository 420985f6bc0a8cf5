"""What SGLang 0.5.23 has kernels for, by its `layers/quantization/compressed_tensors`.

It computes the experts of a layer at once, with kernels of their own. A need is the least compute
capability of a GPU; None: there is no kernel.
"""

from __future__ import annotations

from ctcli.schemes.arguments import QuantizationArgs, Scheme

_AMPERE, _ADA, _HOPPER = 8.0, 8.9, 9.0
_GROUPS = (None, 32, 64, 128)  # of packed integers
_UNPACKED = ("int-quantized", "float-quantized", "naive-quantized")


def needs(scheme: Scheme, *, experts: bool) -> float | None:
    """What linears, or those of experts, need."""
    return _of_experts(scheme) if experts else _of_linears(scheme)


def _of_linears(scheme: Scheme) -> float | None:
    weights, inputs = scheme.weights, scheme.input_activations
    if _is_packed(scheme) and inputs is None:
        return _AMPERE
    if _is_nvfp4(scheme):
        return _AMPERE  # from 10.0 on, inputs are quantized, too
    if scheme.format not in _UNPACKED or not weights.symmetric or weights.num_bits != 8:
        return None
    if weights.type == "float":
        return _of_fp8(weights, inputs)
    by_channel = weights.strategy in ("tensor", "channel")
    return _AMPERE if by_channel and inputs and _is_int8(inputs) else None


def _of_experts(scheme: Scheme) -> float | None:
    weights, inputs = scheme.weights, scheme.input_activations
    if _is_packed(scheme) and inputs is None:
        return _AMPERE
    if _is_nvfp4(scheme) or _is_mxfp4(scheme):
        return _AMPERE
    if inputs is None:
        return None
    if _is_packed(scheme):
        fits = weights.num_bits == 4 and weights.symmetric
        return _HOPPER if fits and inputs.num_bits == 8 and inputs.dynamic else None
    if scheme.format not in _UNPACKED or weights.type != "float" or weights.num_bits != 8:
        return None
    kinds = (weights.strategy, inputs.strategy)
    static = kinds[0] == "channel" and not inputs.dynamic
    known = weights.strategy == "block" or kinds in (("tensor", "tensor"), ("channel", "token"))
    return _ADA if known and not static and _of_fp8(weights, inputs) else None


def _is_packed(scheme: Scheme) -> bool:
    weights = scheme.weights
    return (
        scheme.format == "pack-quantized"
        and weights.type == "int"
        and weights.num_bits in (4, 8)
        and weights.strategy in ("channel", "group")
        and weights.group_size in _GROUPS
    )


def _is_nvfp4(scheme: Scheme) -> bool:
    given = [each for each in (scheme.weights, scheme.input_activations) if each]
    return scheme.format == "nvfp4-pack-quantized" and all(
        (each.type, each.num_bits, each.strategy, each.group_size, each.symmetric)
        == ("float", 4, "tensor_group", 16, True)
        for each in given
    )


def _is_mxfp4(scheme: Scheme) -> bool:
    weights = scheme.weights
    kind = (weights.type, weights.num_bits, weights.strategy, weights.group_size)
    return kind == ("float", 4, "group", 32) and weights.symmetric


def _of_fp8(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> float | None:
    if weights.strategy in ("tensor", "channel"):
        whole = inputs is None or inputs.dynamic or inputs.strategy == "tensor"
        return _AMPERE if whole else None  # below 8.9, inputs stay in 16 bits
    scaled = inputs is not None and inputs.type == "float" and inputs.dynamic
    return _ADA if weights.strategy == "block" and scaled else None


def _is_int8(inputs: QuantizationArgs) -> bool:
    kind = (inputs.type, inputs.num_bits, inputs.strategy, bool(inputs.dynamic))
    return kind in (("int", 8, "token", True), ("int", 8, "tensor", False))
