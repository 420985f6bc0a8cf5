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
from ctcli.rewrites.quantizing.targets import LoaderChoice
from ctcli.schemes import format_of
from ctcli.schemes.family import ComputeDtype, Execution, Observer
from ctcli.schemes.parsing import Overrides, parse_schemes
from ctcli.schemes.presets import PRESETS

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
        "Preset such as W4A16, for all linears or those that PATTERN matches. PATTERN is a name, "
        "or re: and an expression. Repeatable; the first that matches counts.",
        "none",
        metavar="[PATTERN=]NAME",
        panel="What",
        choices=PRESETS,
    )
    config: Path | None = option(
        None,
        "compressed-tensors' own JSON (config_groups, ignore), instead of --scheme.",
        panel="What",
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
        None,
        "Integers without a zero point, or with one.",
        _SCHEME_S,
        flags="--symmetric/--asymmetric",
    )
    format: str | None = option(
        None,
        "Layout on disk: pack-quantized, int-quantized, float-quantized, naive-quantized.",
        "what vLLM loads",
        metavar="NAME",
        panel="Output",
        choices=("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    )
    targets: tuple[str, ...] = option(
        (),
        "Module to quantize although it is protected by default (lm_head). Repeatable.",
        "linears",
        metavar="PATTERN",
        panel="What",
    )
    ignore: tuple[str, ...] = option(
        (),
        "Module to leave alone, beside the default ones. Repeatable.",
        "embeddings, heads, routers, norms, convolutions, towers, MTP",
        metavar="PATTERN",
        panel="What",
    )
    default_ignore: bool = option(
        True,
        "Whether the default modules are left alone.",
        flags="--default-ignore/--no-default-ignore",
        panel="What",
    )
    on_indivisible: OnIndivisible = option(
        "error", "What to do where the group size does not divide a weight's columns."
    )
    target: LoaderChoice | None = option(
        None,
        "The loader that has to take the result: what it does not take is refused before anything "
        "is written. none: nobody has to.",
        "a warning where no loader takes it",
        recorded="unless default",
    )
    rest: Literal["keep", "dense"] = option(
        "keep",
        "Where SRC is quantized already: modules that are left alone stay as they are stored, if "
        "compressed-tensors has a scheme for them, or all become floats.",
        recorded="unless default",
        panel="What",
    )
    observer: Observer = option(
        "minmax",
        "Range of a group: its extremes, or the shrunk range with the least squared error (mse, "
        "slower). For symmetric integers and 16-bit activations: signed, where scales may be "
        "negative, and pnorm, which searches such scales by fourth powers of errors.",
    )
    compute_dtype: ComputeDtype = option(
        "float32",
        "Dtype of weight / scale: float32, as compressed-tensors has it on GPUs, or the weight's, "
        "as on CPUs.",
    )
    input_scales: Path | None = option(
        None,
        "Calibrated scales for static schemes. A safetensors file with <module>.input_scale or "
        ".input_global_scale, and k_scale and v_scale for an FP8 key-value cache.",
    )
    constant_input_scale: bool = option(
        False,
        "NVFP4 activations without calibration: input_global_scale is 1.0 for every module, so "
        "that only the scale of each group follows the activations.",
        recorded="unless default",
    )
    ct_version: Release = ct_version()
    allow_nonfinite: bool = option(False, "Let NaN and infinite weights through.")
    max_shard_size: int | None = shard_size()
    device: str = device()

    def __post_init__(self) -> None:
        """Refuse what would have no effect; hash, parse and read what the options name."""
        if "Linear" in self.targets:
            raise OptionError("--targets Linear: all linears are the default; leave it out.")
        _ = self.recipe, self.choice
        self._check_observer()
        self._check_constant_scale()
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

    def _check_constant_scale(self) -> None:
        """Refuse a constant scale that nothing takes, or that is given as well.

        Raises:
            CtcliError: says which.
        """
        if not self.constant_input_scale:
            return
        schemes = [scheme for _, scheme in self.choice.schemes]
        problem = None
        if not any(s.needs_input_scale == "input_global_scale" for s in schemes):
            named = ", ".join(dict.fromkeys(scheme.name for scheme in schemes))
            problem = f"no scheme has activations under a global scale ({named})"
        elif self.input_scales:
            problem = f"{self.input_scales} has the scales"
        if problem:
            raise CtcliError(f"--constant-input-scale: {problem}.", "Leave it out.")

    def _check_observer(self) -> None:
        """Refuse an observer that a scheme has no use for.

        Raises:
            CtcliError: names each scheme, and why.
        """
        problems = [
            f"{scheme.name}: --observer {self.observer}: {problem}."
            for scheme in dict.fromkeys(scheme for _, scheme in self.choice.schemes)
            if (problem := format_of(scheme).observer_problem(scheme, self.observer))
        ]
        if problems:
            raise CtcliError(problems, "Give --observer minmax, or a scheme such as W4A16.")

    @property
    def execution(self) -> Execution:
        """Device, and what to do with values that are not finite."""
        return Execution(self.device, self.allow_nonfinite)

    @cached_property
    def scales(self) -> Mapping[str, LazyTensor]:
        """Scales of static activations and of the key-value cache, by tensor name."""
        return read_scales(self.input_scales) if self.input_scales else {}
