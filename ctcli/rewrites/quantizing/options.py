"""The options of `ctcli quantize`, from what a user typed to what the rewrite takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctcli.errors import CtcliError, os_errors_of
from ctcli.formats.groups import parse_config
from ctcli.lazy.dtypes import WEIGHT_FLOATS
from ctcli.lazy.tensors import LazyTensor, StoredTensor, TensorSpec
from ctcli.rewrites.quantizing.selection import Choice, OnIndivisible
from ctcli.schemes.family import ComputeDtype, Execution, Observer
from ctcli.schemes.parsing import Overrides, parse_schemes
from ctcli.storage.local import local_file
from ctcli.storage.safetensors import read_weights_file
from ctcli.storage.strict_json import parse_json

# What the options are called whose arguments compressed-tensors calls otherwise.
_OPTIONS = {"num_bits": "bits", "block_structure": "block"}
CACHE_SCALES = (".k_scale", ".v_scale")


@dataclass(frozen=True)
class QuantizeOptions:
    """All that decides the output.

    Attributes:
        choice: which modules, and how.
        observer: how a group's range is found.
        compute_dtype: what quotients are computed in.
        execution: device, and what to do with values that are not finite.
        input_scales: scales of static activations and of the key-value cache, by tensor name.
        max_shard_size: bytes of tensor data that a shard may hold; None leaves the shards.
        recipe: the options as a user gave them.
    """

    choice: Choice
    observer: Observer
    compute_dtype: ComputeDtype
    execution: Execution
    input_scales: Mapping[str, LazyTensor]
    max_shard_size: int | None
    recipe: Mapping[str, Any]


def quantize_options(
    *,
    schemes: Sequence[str],
    config: Path | None,
    overrides: Overrides,
    targets: Sequence[str],
    ignore: Sequence[str],
    default_ignore: bool,
    on_indivisible: OnIndivisible,
    observer: Observer,
    compute_dtype: ComputeDtype,
    input_scales: Path | None,
    allow_nonfinite: bool,
    device: str,
    max_shard_size: int | None,
) -> QuantizeOptions:
    """Read the files that options name, and parse the schemes.

    Raises:
        CtcliError: unknown schemes, unreadable files, or a device that is not there.
    """
    recipe = {
        "scheme": list(schemes),
        "config": str(config) if config else None,
        "config_sha256": sha256_of(config),
        **{_OPTIONS.get(key, key): value for key, value in overrides.given().items()},
        "targets": list(targets),
        "ignore": list(ignore),
        "default_ignore": default_ignore,
        "on_indivisible": on_indivisible,
        "observer": observer,
        "compute_dtype": compute_dtype,
        "input_scales": str(input_scales) if input_scales else None,
        "input_scales_sha256": sha256_of(input_scales),
        "allow_nonfinite": allow_nonfinite,
        "max_shard_size": max_shard_size,
    }
    if config and (schemes or overrides.given()):
        raise CtcliError(
            "--config says all about the schemes: --scheme and single arguments do not go with it.",
            "Give one or the other.",
        )
    if config:
        chosen, left_alone = parse_config(config.name, read_json(config))
        ignore = (*ignore, *left_alone)
    else:
        chosen = parse_schemes(schemes, overrides)
    check_device(device)
    return QuantizeOptions(
        Choice(chosen, tuple(targets), tuple(ignore), default_ignore, on_indivisible),
        observer,
        compute_dtype,
        Execution(device, allow_nonfinite),
        _read_scales(input_scales) if input_scales else {},
        max_shard_size,
        recipe,
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        CtcliError: it cannot be read, or holds something else.
    """
    with os_errors_of(str(path), "reading"):
        content = path.read_bytes()
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise CtcliError(f"{path}: not JSON: {error}.", "Correct the file.") from error
    if not isinstance(parsed, dict):
        raise CtcliError(f"{path}: no JSON object.", "Correct the file.")
    return parsed


def _read_scales(path: Path) -> dict[str, LazyTensor]:
    """The scales of a file, each a single number, in the shape [1] that readers expect."""
    with os_errors_of(str(path), "reading"):
        file = local_file(path.name, path)
    scales: dict[str, LazyTensor] = {}
    problems = []
    for name, tensor in read_weights_file(file).shard.tensors.items():
        if not isinstance(tensor, StoredTensor) or tensor.spec.dtype not in WEIGHT_FLOATS:
            problems.append(f"{path}: {name} has dtype {tensor.spec.dtype}, not a float's.")
        elif tensor.spec.shape not in ((), (1,)):
            problems.append(f"{path}: {name} has shape {list(tensor.spec.shape)}, not one number.")
        else:
            scales[name] = replace(tensor, spec=TensorSpec(tensor.spec.dtype, (1,)))
    if problems:
        raise CtcliError(problems, "Give one float for each scale.")
    return scales


def sha256_of(path: Path | None) -> str | None:
    """What a file holds: a run with another content is another run."""
    if path is None:
        return None
    with os_errors_of(str(path), "reading"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here."""
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).partition("\n")[0]
        raise CtcliError(
            f"--device {device}: torch cannot use it: {first_line}", "Give --device cpu."
        ) from error
