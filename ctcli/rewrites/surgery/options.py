"""The options of `ctcli fuse-norms` and `ctcli rotate`, and what is read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ctcli.errors import CtcliError, os_errors_of
from ctcli.models.mapping import ArchitectureMapping, parse_mapping
from ctcli.options import OptionError, option, options_of
from ctcli.rewrites.options import (
    RewriteOptions,
    check_device,
    device,
    read_json,
    shard_size,
)
from ctcli.rewrites.surgery.learned import read_rotations
from ctcli.rewrites.surgery.matrices import TransformType
from ctcli.rewrites.surgery.transform_config import TransformScheme, parse_transform_config
from ctcli.storage.steps import record

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "float64"]
RotationName = Literal["R1", "R2", "R3", "R4"]
_STEPS = 100
# The options that say which matrices there are, beside a TransformConfig.
_OF_MATRICES = (
    *("rotations", "transform_type", "steps", "seed", "randomize", "block_size"),
    *("rotation_file", "save_online_weights"),
)


def _parse_rotations(text: str) -> tuple[RotationName, ...]:
    names = [name.strip().upper() for name in text.split(",")]
    if not set(names) <= {"R1", "R2", "R3", "R4"} or len(set(names)) < len(names):
        raise OptionError(f"{text!r}: give some of R1,R2,R3,R4.")
    return cast(tuple[RotationName, ...], tuple(sorted(names)))


@dataclass(frozen=True)
class SurgeryOptions(RewriteOptions):
    """The options of a command that works on a model's parts."""

    mapping: Path | None = option(
        None,
        "TOML or JSON that says what embeds, reads and writes, for a model type that is not known "
        "(SpinQuantMapping's and NormMapping's fields).",
        "by model_type",
        is_common=True,
    )

    @cached_property
    def parts(self) -> ArchitectureMapping | None:
        """The checkpoint's parts as the mapping names them."""
        return _read_mapping(self.mapping) if self.mapping else None


@dataclass(frozen=True)
class FuseOptions(SurgeryOptions):
    """Move the gain of every norm into the linears that read it.

    The model computes the same, and its norms have gains of one. Tied embeddings are untied where
    the final norm goes into lm_head.
    """

    center: bool = option(
        False,
        "LayerNorm models: take the mean out of what is written into the residual stream, so that "
        "each LayerNorm computes what an RMSNorm would.",
    )
    dtype: Literal["float32"] | None = option(
        None,
        "Write all floats in this dtype, for a chain without rounding in between.",
        "the tensors' own",
    )
    max_shard_size: int | None = shard_size()
    device: str = device()

    def __post_init__(self) -> None:
        """Hash and read what the options name."""
        _ = self.recipe
        check_device(self.device)
        _ = self.parts

    @property
    def tag(self) -> str | None:
        """The safetensors tag of `dtype`."""
        return "F32" if self.dtype else None


@dataclass(frozen=True)
class RotateOptions(SurgeryOptions):
    """Rotate the weights, so that no coordinate stands out; the model computes the same.

    Norms are fused first. With R1 and R2 the result is an ordinary checkpoint.
    """

    rotations: tuple[RotationName, ...] | None = option(
        None,
        "R1: the residual stream. R2: values. R3, R4: queries and keys, and the MLPs' inner "
        "activations, for servers that rotate these while they run.",
        "R1,R2",
        metavar="NAMES",
        parse=_parse_rotations,
        choices=("R1", "R2", "R3", "R4"),
    )
    transform_type: TransformType | None = option(None, "Where the matrices come from.", "hadamard")
    steps: int | None = option(None, "learned: steps of learning.", "100", least=1, most=100_000)
    seed: int | None = option(
        None,
        "Of random signs and matrices, and of what is learned from.",
        "compressed-tensors' constant",
        least=0,
        most=2**64 - 1,
    )
    randomize: bool = option(False, "R2: a different matrix for each layer.")
    block_size: int | None = option(
        None, "R1, R4: rotate blocks of so many coordinates.", "all together", least=1
    )
    precision: Precision = option(
        "auto", "Arithmetic; auto is float32 for 16-bit weights, float64 for wider ones."
    )
    save_online_weights: bool = option(False, "R3: write its matrix too, which vLLM cannot load.")
    transform_config: Path | None = option(
        None,
        "compressed-tensors' TransformConfig as JSON, instead of --rotations. Norms are not fused.",
    )
    rotation_file: Path | None = option(
        None, "Learned matrices as SpinQuant publishes them: R1, <attention>.R2."
    )
    max_shard_size: int | None = shard_size()
    device: str = device()

    def __post_init__(self) -> None:
        """Refuse what would have no effect; hash and read what the options name."""
        _check_together(self)
        _ = self.recipe
        check_device(self.device)
        _ = self.parts, self.transforms, self.learned

    @property
    def chosen(self) -> tuple[RotationName, ...]:
        """Which of R1 to R4, where there is no TransformConfig."""
        return self.rotations or ("R1", "R2")

    @property
    def learns(self) -> bool:
        """Whether R1 and R2 are learned."""
        return self.transform_type == "learned"

    @property
    def learning_steps(self) -> int:
        """How many steps that takes."""
        return self.steps or _STEPS

    @property
    def made_as(self) -> TransformType:
        """Where the matrices come from that no file has, or that learning begins with."""
        return "hadamard" if self.learns else self.transform_type or "hadamard"

    @cached_property
    def transforms(self) -> tuple[TransformScheme, ...]:
        """Schemes of a TransformConfig, in place of `rotations`."""
        path = self.transform_config
        return parse_transform_config(str(path), read_json(path)) if path else ()

    @cached_property
    def learned(self) -> Mapping[str, torch.Tensor] | None:
        """Matrices by name, `R1` and `<attention>.R2`, in place of made ones."""
        return read_rotations(self.rotation_file) if self.rotation_file else None

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """The options as the keys of a recipe's step, with what None stands for."""
        has_all = self.rotation_file and {*self.chosen} <= {"R1", "R2"}
        made = self.transform_type or self.made_as
        meant = {
            "rotations": None if self.transform_config else list(self.chosen),
            "transform_type": None if self.transform_config or has_all else made,
            **({"steps": self.learning_steps} if self.learns else {}),
        }
        return {**record(self), **meant}

    @property
    def step(self) -> dict[str, Any]:
        """The step of the recipe."""
        return {"use": "rotate", **self.recipe}


def _check_together(options: RotateOptions) -> None:
    """Refuse options that would have no effect.

    Raises:
        CtcliError: names each.
    """
    given = {
        f"--{each.name.replace('_', '-')}"
        for each in options_of(RotateOptions)
        if each.name in _OF_MATRICES and getattr(options, each.name) != each.default
    }
    idle, reason = _idle(given, options.chosen, options.transform_config)
    if not idle and options.learns and (idle := given & {"--randomize", "--block-size"}):
        reason = "learned matrices are one for R1, and one for R2 of each layer"
    if not idle and not options.learns and (idle := given & {"--steps"}):
        reason = "only --transform-type learned has steps"
    if idle:
        raise CtcliError(
            [f"{name}: it would have no effect: {reason}." for name in sorted(idle)],
            "Leave it out.",
        )


def _idle(
    given: set[str], rotations: Sequence[RotationName], transform_config: Path | None
) -> tuple[set[str], str]:
    """Which of the given options would have no effect, and why."""
    if transform_config:
        idle = given - {"--seed", "--save-online-weights"}
        reason = "--transform-config says all about the rotations"
    elif "--rotation-file" in given:
        online = not {"R3", "R4"}.isdisjoint(rotations)
        made = {"--transform-type", "--seed", "--block-size"} if not online else set()
        idle = given & {*made, "--randomize"}
        reason = "--rotation-file has the matrices of R1 and R2"
        if {"R1", "R2"}.isdisjoint(rotations):
            idle, reason = {"--rotation-file"}, "it has the matrices of R1 and R2"
    else:
        uses = {
            "--randomize": {"R2"},
            "--block-size": {"R1", "R4"},
            "--save-online-weights": {"R3"},
            "--steps": {"R1", "R2"},
        }
        idle = {name for name in given if uses.get(name, {*rotations}).isdisjoint(rotations)}
        reason = f"there is only {', '.join(rotations)}"
    return idle, reason


def _read_mapping(path: Path) -> ArchitectureMapping:
    with os_errors_of(str(path), "reading"):
        content = path.read_bytes()
    try:
        return parse_mapping(str(path), content.decode())
    except UnicodeDecodeError as error:
        raise CtcliError(f"{path}: not text: {error}.", "Give TOML or JSON.") from error
