"""Numeric formats, one file each, and the one table that lists them."""

from __future__ import annotations

from functools import lru_cache

from ctcli.schemes.arguments import QuantizationArgs, Scheme
from ctcli.schemes.float8 import FLOAT8
from ctcli.schemes.format import NumericFormat
from ctcli.schemes.integer import INTEGERS
from ctcli.schemes.mx import MICROSCALING
from ctcli.schemes.nvfp4 import NVFP4

# The first that claims arguments is asked about them.
FORMATS: tuple[NumericFormat, ...] = (MICROSCALING, NVFP4, FLOAT8, INTEGERS)

_UNITS = {
    "tensor": "by tensor",
    "channel": "by channel",
    "token": "by token",
    "tensor_group": "in groups of {group_size} under a global scale",
    "group": "in groups of {group_size}",
}


@lru_cache(maxsize=256)
def format_of(scheme: Scheme) -> NumericFormat:
    """The format that quantizes weights of this scheme.

    Raises:
        ValueError: none does, or it does not write the scheme's layout.
    """
    found = next((each for each in FORMATS if each.accepts(scheme)), None)
    if found is None:
        weights = scheme.weights
        raise ValueError(
            f"no weights of type {weights.type} with {weights.num_bits} bits, strategy "
            f"{weights.strategy} and group_size {weights.group_size} are known"
        )
    if scheme.format not in found.FORMATS:
        raise ValueError(
            f"format {scheme.format!r}: these weights are written as {' or '.join(found.FORMATS)}"
        )
    return found


def default_format(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
    """The layout that compressed-tensors chooses, except where vLLM could not load it."""
    return _claiming(weights).default_format(weights, inputs)


def check(arguments: QuantizationArgs) -> None:
    """Refuse arguments that contradict themselves, or elements of a size that there is not.

    Raises:
        ValueError: says which.
    """
    arguments.check()
    _claiming(arguments).check_bits(arguments)


def words(arguments: QuantizationArgs) -> str:
    """Arguments for people: `INT4 in groups of 128, asymmetric`."""
    unit = _UNITS.get(arguments.strategy, "").format(group_size=arguments.group_size)
    if arguments.block_structure:
        rows, columns = arguments.block_structure
        unit = f"in {rows}x{columns} blocks"
    kind = _claiming(arguments).kind(arguments)
    return f"{kind} {unit}{'' if arguments.symmetric else ', asymmetric'}"


def _claiming(arguments: QuantizationArgs) -> NumericFormat:
    return next(each for each in FORMATS if each.claims(arguments))
