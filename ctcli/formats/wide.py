"""Where servers keep inputs of linears in 16 bits, although a scheme has them in fewer.

Of vLLM, packed integers: the one kernel that rounds their inputs is chosen where no other takes the
weights. Of both servers, floats: older GPUs have no arithmetic of so few bits.
"""

from __future__ import annotations

from collections.abc import Iterable

from ctcli.formats.loaders import Loader
from ctcli.schemes.arguments import Scheme


def wide_inputs(loader: Loader, schemes: Iterable[Scheme]) -> str:
    """What a user should know of them, in words; empty: nothing."""
    places = dict.fromkeys(_place(loader, scheme) for scheme in schemes)
    found = " and ".join(place for place in places if place)
    return f"inputs stay in 16 bits {found}" if found else ""


def _place(loader: Loader, scheme: Scheme) -> str:
    weights, inputs = scheme.weights, scheme.input_activations
    if loader == "transformers" or inputs is None:
        return ""
    if weights.type == "int":
        is_packed = scheme.format == "pack-quantized" and inputs.type == "int"
        is_left = is_packed and loader == "vllm"
        return f"where there is no kernel for INT{inputs.num_bits} ones" if is_left else ""
    if (weights.num_bits, inputs.num_bits) == (4, 4):
        return "on GPUs below compute capability 10.0"
    is_fp8 = weights.strategy in ("tensor", "channel") and inputs.num_bits == 8
    return "on GPUs below compute capability 8.9" if is_fp8 else ""
