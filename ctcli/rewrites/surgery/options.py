"""The options of `ctcli fuse-norms` and `ctcli rotate`, from what a user typed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctcli.errors import CtcliError, os_errors_of
from ctcli.models.mapping import ArchitectureMapping, parse_mapping
from ctcli.rewrites.quantizing.options import check_device, read_json, sha256_of
from ctcli.rewrites.surgery.fuse_norms import FuseOptions
from ctcli.rewrites.surgery.matrices import TransformType
from ctcli.rewrites.surgery.rotate import Precision, RotateOptions, RotationName
from ctcli.rewrites.surgery.transform_config import TransformScheme, parse_transform_config

if TYPE_CHECKING:
    import torch


def fuse_options(
    *,
    mapping: Path | None,
    center: bool,
    dtype: str | None,
    device: str,
    max_shard_size: int | None,
) -> FuseOptions:
    """Read the mapping, if one is given.

    Raises:
        CtcliError: it cannot be read, or the device is not there.
    """
    recipe = {
        "mapping": str(mapping) if mapping else None,
        "mapping_sha256": sha256_of(mapping),
        "center": center,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
    }
    check_device(device)
    tag = {"float32": "F32"}[dtype] if dtype else None
    return FuseOptions(_read_mapping(mapping), center, tag, device, max_shard_size, recipe)


def rotate_options(
    *,
    mapping: Path | None,
    rotations: Sequence[RotationName] | None,
    transform_type: TransformType | None,
    seed: int | None,
    randomize: bool,
    block_size: int | None,
    precision: Precision,
    save_online_weights: bool,
    transform_config: Path | None,
    rotation_file: Path | None,
    device: str,
    max_shard_size: int | None,
) -> RotateOptions:
    """Read the files that options name; None stands for R1 and R2, and for `hadamard`.

    Raises:
        CtcliError: they cannot be read, the device is not there, or options do not go together.
    """
    given = {
        "--rotations": rotations is not None,
        "--transform-type": transform_type is not None,
        "--seed": seed is not None,
        "--randomize": randomize,
        "--block-size": block_size is not None,
        "--rotation-file": rotation_file is not None,
        "--save-online-weights": save_online_weights,
    }
    rotations = rotations or ("R1", "R2")
    _check_together(
        {name for name, is_given in given.items() if is_given}, rotations, transform_config
    )
    transform_type = transform_type or "hadamard"
    makes = not transform_config and not (rotation_file and {*rotations} <= {"R1", "R2"})
    recipe = {
        "mapping": str(mapping) if mapping else None,
        "mapping_sha256": sha256_of(mapping),
        "rotations": None if transform_config else list(rotations),
        "transform_type": transform_type if makes else None,
        "seed": seed,
        "randomize": randomize,
        "block_size": block_size,
        "precision": precision,
        "save_online_weights": save_online_weights,
        "transform_config": str(transform_config) if transform_config else None,
        "transform_config_sha256": sha256_of(transform_config),
        "rotation_file": str(rotation_file) if rotation_file else None,
        "rotation_file_sha256": sha256_of(rotation_file),
        "max_shard_size": max_shard_size,
    }
    check_device(device)
    return RotateOptions(
        _read_mapping(mapping),
        tuple(rotations),
        transform_type,
        seed,
        randomize,
        block_size,
        precision,
        save_online_weights,
        _read_transforms(transform_config) if transform_config else (),
        _read_rotations(rotation_file) if rotation_file else None,
        device,
        max_shard_size,
        recipe,
    )


def _check_together(
    given: set[str], rotations: Sequence[RotationName], transform_config: Path | None
) -> None:
    """Refuse options that would have no effect.

    Raises:
        CtcliError: names each.
    """
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
        }
        idle = {name for name in given if uses.get(name, {*rotations}).isdisjoint(rotations)}
        reason = f"there is only {', '.join(rotations)}"
    if idle:
        raise CtcliError(
            [f"{name}: it would have no effect: {reason}." for name in sorted(idle)],
            "Leave it out.",
        )


def _read_mapping(path: Path | None) -> ArchitectureMapping | None:
    if path is None:
        return None
    with os_errors_of(str(path), "reading"):
        content = path.read_bytes()
    try:
        return parse_mapping(str(path), content.decode())
    except UnicodeDecodeError as error:
        raise CtcliError(f"{path}: not text: {error}.", "Give TOML or JSON.") from error


def _read_transforms(path: Path) -> tuple[TransformScheme, ...]:
    return parse_transform_config(str(path), read_json(path))


def _read_rotations(path: Path) -> Mapping[str, torch.Tensor]:
    """The matrices of a file as SpinQuant publishes them: torch's pickle, or safetensors."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with os_errors_of(str(path), "reading"):
        try:
            if path.suffix == ".safetensors":
                found = load_file(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
            raise CtcliError(
                f"{path}: no file of tensors: {reason}", "Give safetensors, or torch's own format."
            ) from error
    if not (isinstance(found, dict) and all(map(torch.is_tensor, found.values()))):
        raise CtcliError(f"{path}: not a table of tensors.", "Give matrices by name.")
    problems = [
        f"{path}: {name} is {tensor.dtype}, {tensor.layout}: no dense matrix of real numbers."
        for name, tensor in found.items()
        if tensor.is_complex() or tensor.layout is not torch.strided
    ]
    if problems:
        raise CtcliError(problems, "Save dense float32 matrices.")
    return {str(name): tensor.detach() for name, tensor in found.items()}
