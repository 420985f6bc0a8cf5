"""What a checkpoint would become under common schemes: size, group size, machines; by headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.loaders import capability, machine, scheme_problems
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.experts import is_expert
from ctcli.rewrites.quantizing.candidates import candidates_of
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.schemes import default_format, format_of
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Numerics
from ctcli.schemes.presets import preset

_OFFERED = (
    *("FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W8A16", "MXFP8A16"),
    *("NVFP4A16", "MXFP4A16", "W4A16", "W4A16_ASYM"),
)
_BY_CHANNEL = "FP8_DYNAMIC"  # fits every weight
_SMALLEST_GROUP = 16
_MEMORIES = (8, 12, 16, 24, 32, 48, 80, 141, 192)  # of GPUs that models are served on, in GB
_LARGE = (80, 141, 192)
_BESIDE_WEIGHTS = 1.2  # memory over that of the weights, for activations and a short cache


@dataclass(frozen=True)
class Offer:
    """What a checkpoint would become under a scheme.

    Attributes:
        scheme: its name.
        nbytes: of tensor data; None where it cannot be had.
        bits: per weight, all tensors together.
        options: what has to be given beside `--scheme`; empty: nothing.
        machine: what vLLM needs to run it; None: vLLM does not.
        in_transformers: whether transformers loads it.
        capability: what SGLang needs to run it; None: SGLang does not.
        problem: why it cannot be had; empty if it can.
    """

    scheme: str
    nbytes: int | None
    bits: float
    options: str
    machine: str | None
    in_transformers: bool
    capability: str | None
    problem: str = ""

    @property
    def fits(self) -> str:
        """The smallest GPU, or number of GPUs, that has room for it."""
        if self.nbytes is None:
            return ""
        need = self.nbytes * _BESIDE_WEIGHTS / 1e9
        if one := next((size for size in _MEMORIES if need <= size), None):
            return f"{one} GB"
        several = [
            (n * size, n, size) for n in (2, 4, 8, 16) for size in _LARGE if need <= n * size
        ]
        return "{1} x {2} GB".format(*min(several)) if several else "more than 16 GPUs"

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "scheme": self.scheme,
            "tensor_bytes": self.nbytes,
            "bits_per_weight": round(self.bits, 3),
            "options": self.options or None,
            "vllm_needs": self.machine,
            "transformers": self.in_transformers,
            "sglang_needs": self.capability,
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class _Linears:
    """The weights that are quantized by default.

    Attributes:
        shapes: how many there are of a shape.
        dtype: that floating-point scales have.
        others: bytes of all other tensors.
        kinds: whether some are experts', and whether some are not.
    """

    shapes: Mapping[tuple[int, ...], int]
    dtype: str
    others: int
    kinds: frozenset[bool]


def offers(source: Checkpoint, parameters: int) -> tuple[Offer, ...]:
    """What there is to choose from; nothing where nothing can be quantized.

    Args:
        source: a dense checkpoint.
        parameters: how many there are.
    """
    try:
        linears = _linears(source)
    except CtcliError:  # of the refusals, `quantize --dry-run` tells
        return ()
    return tuple(_offer(preset(name), linears, parameters) for name in _OFFERED)


def _linears(source: Checkpoint) -> _Linears:
    found = candidates_of(source, QuantizeOptions(scheme=(_BY_CHANNEL,)).choice)
    specs = [w.spec for m in found.selection.schemes if (w := found.linears[m].weight)]
    shapes = Counter(spec.shape for spec in specs)
    kinds = frozenset(is_expert(module) for module in found.selection.schemes)
    taken = sum(spec.nbytes for spec in specs)
    return _Linears(shapes, specs[0].dtype, found.checkpoint.nbytes - taken, kinds)


def _offer(scheme: Scheme, linears: _Linears, parameters: int) -> Offer:
    fitting = _fitting(scheme, linears)
    if fitting is None:
        group = scheme.weights.group_size
        problem = f"its groups of {group} do not divide the columns of every weight"
        return Offer(scheme.name, None, 0.0, "", None, False, None, problem)
    numerics = Numerics(fitting, linears.dtype, "float32", "minmax")
    nbytes = linears.others
    for shape, count in linears.shapes.items():
        outputs = format_of(fitting).outputs(numerics, TensorSpec(linears.dtype, shape))
        nbytes += count * sum(output.spec.nbytes for output in outputs.values())
    other = fitting.weights.group_size != scheme.weights.group_size
    return Offer(
        scheme.name,
        nbytes,
        8 * nbytes / max(1, parameters),
        f"--group-size {fitting.weights.group_size}" if other else "",
        machine(fitting),
        not scheme_problems("transformers", fitting),
        capability((fitting, experts) for experts in linears.kinds),
    )


def _fitting(scheme: Scheme, linears: _Linears) -> Scheme | None:
    """The scheme, with smaller groups where its own do not divide; None: there are none."""
    weights = scheme.weights
    group = weights.group_size
    if group is None:
        return scheme
    while any(shape[1] % group for shape in linears.shapes):
        group //= 2
        if group < _SMALLEST_GROUP or weights.scale_dtype:
            return None
    smaller = replace(weights, group_size=group)
    layout = default_format(smaller, scheme.input_activations)
    return replace(scheme, weights=smaller, format=layout)
