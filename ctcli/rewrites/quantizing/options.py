"""The options of `ctcli quantize`, and what is read and parsed of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ctcli.errors import CtcliError
from ctcli.formats.groups import parse_config
from ctcli.lazy.nodes import LazyTensor
from ctcli.options import OptionError, option
from ctcli.rewrites.options import (
    RewriteOptions,
    check_device,
    ct_version,
    device,
    read_json,
    shard_size,
)
from ctcli.rewrites.quantizing.config import Release
from ctcli.rewrites.quantizing.input_scales import read_scales
from ctcli.rewrites.quantizing.selection import Choice, OnIndivisible
from ctcli.rewrites.quantizing.targets import Target
from ctcli.schemes.family import ComputeDtype, Execution, Observer
from ctcli.schemes.parsing import Overrides, parse_schemes

_SCHEME_S = "the scheme's"


def _parse_block(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise OptionError(f"{text!r} is no block: give rows and columns, as in 128x128.")
    return int(rows), int(columns)


@dataclass(frozen=True)
class QuantizeOptions(RewriteOptions):
    """Quantize linears into a compressed-tensors checkpoint, without a model and without data.

    Embeddings, heads, classifiers, routers and gates, norms, convolutions, vision and audio towers,
    per-layer inputs and multi-token-prediction layers are left alone unless --targets names them.
    """

    scheme: tuple[str, ...] = option(
        (),
        "Preset such as W4A16, for all linears or for those that PATTERN matches (a name, or re: "
        "and an expression). Repeatable; the first that matches counts.",
        "none",
        metavar="[PATTERN=]NAME",
    )
    config: Path | None = option(
        None, "compressed-tensors' own JSON (config_groups, ignore), instead of --scheme."
    )
    bits: int | None = option(None, "Bits of a weight.", _SCHEME_S, metavar="BITS", least=2, most=8)
    type: Literal["int", "float"] | None = option(None, "Integers, or FP8 and FP4.", _SCHEME_S)
    strategy: Literal["tensor", "channel", "group", "block", "tensor_group"] | None = option(
        None, "Which weights share a scale.", _SCHEME_S
    )
    group_size: int | None = option(None, "Columns that share a scale.", _SCHEME_S, least=2)
    block: tuple[int, int] | None = option(
        None,
        "Tile that shares a scale (128x128).",
        _SCHEME_S,
        metavar="ROWSxCOLUMNS",
        parse=_parse_block,
    )
    symmetric: bool | None = option(
        None, "Without a zero point?", _SCHEME_S, flags="--symmetric/--asymmetric"
    )
    format: str | None = option(
        None,
        "Layout on disk: pack-quantized, int-quantized, float-quantized, naive-quantized.",
        "what vLLM loads",
        metavar="NAME",
    )
    targets: tuple[str, ...] = option(
        (),
        "Module to quantize although it is protected by default (lm_head). Repeatable.",
        "linears",
        metavar="PATTERN",
    )
    ignore: tuple[str, ...] = option(
        (),
        "Module to leave alone, beside the default ones. Repeatable.",
        "embeddings, heads, routers, norms, convolutions, towers, MTP",
        metavar="PATTERN",
    )
    default_ignore: bool = option(
        True, "Leave the default modules alone.", flags="--default-ignore/--no-default-ignore"
    )
    on_indivisible: OnIndivisible = option(
        "error", "What to do with weights whose columns are no multiple of the group size."
    )
    target: Target | None = option(
        None,
        "The loader that has to take the result: what it does not take is refused before anything "
        "is written. none: nobody has to.",
        "a warning where no loader takes it",
        recorded="unless default",
    )
    rest: Literal["keep", "dense"] = option(
        "keep",
        "Where SRC is quantized already: modules that are left alone stay as they are stored, or "
        "become floats.",
        recorded="unless default",
    )
    observer: Observer = option(
        "minmax",
        "Range of a group: its extremes, or the shrunk range with the least squared error (mse, "
        "slower).",
    )
    compute_dtype: ComputeDtype = option(
        "float32",
        "Dtype of weight / scale: float32, as compressed-tensors has it on GPUs, or the weight's, "
        "as on CPUs.",
    )
    input_scales: Path | None = option(
        None,
        "safetensors file with <module>.input_scale or .input_global_scale for static schemes, and "
        "k_scale and v_scale for an FP8 key-value cache.",
    )
    ct_version: Release = ct_version()
    allow_nonfinite: bool = option(False, "Let NaN and infinite weights through.")
    max_shard_size: int | None = shard_size()
    device: str = device()

    def __post_init__(self) -> None:
        """Hash, parse and read what the options name."""
        _ = self.recipe, self.choice
        check_device(self.device)
        _ = self.scales

    @cached_property
    def choice(self) -> Choice:
        """Which modules, and how."""
        overrides = Overrides(
            num_bits=self.bits,
            type=self.type,
            strategy=self.strategy,
            group_size=self.group_size,
            block_structure=self.block,
            symmetric=self.symmetric,
            format=self.format,
        )
        left_alone: tuple[str, ...] = ()
        if self.config is None:
            schemes = parse_schemes(self.scheme, overrides)
        elif self.scheme or overrides.given():
            raise CtcliError(
                "--config says all about the schemes: --scheme and single arguments do not go with "
                "it.",
                "Give one or the other.",
            )
        else:
            schemes, left_alone = parse_config(self.config.name, read_json(self.config))
        ignore = (*self.ignore, *left_alone)
        return Choice(schemes, self.targets, ignore, self.default_ignore, self.on_indivisible)

    @property
    def execution(self) -> Execution:
        """Device, and what to do with values that are not finite."""
        return Execution(self.device, self.allow_nonfinite)

    @cached_property
    def scales(self) -> Mapping[str, LazyTensor]:
        """Scales of static activations and of the key-value cache, by tensor name."""
        return read_scales(self.input_scales) if self.input_scales else {}
