"""Scales of static activations and of the key-value cache: a user's, calibrated, or constant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ctcli.checkpoint.value import Modules
from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.schemes.advice import WITHOUT_CALIBRATION
from ctcli.schemes.arguments import Scheme
from ctcli.storage.local import local_file
from ctcli.storage.safetensors import read_weights_file

CACHE_SCALES = (".k_scale", ".v_scale")
# One, in float32: no activation is scaled before groups are.
_ONE = Known(TensorSpec("F32", (1,)), b"\x00\x00\x80\x3f")


def constant_scales(schemes: Mapping[str, Scheme]) -> dict[str, LazyTensor]:
    """A global scale of one for the activations of every module whose scheme has one.

    It divides nothing by calibrated ranges: E4M3 scales of groups, up to 448 times 6, take all.

    Args:
        schemes: by module.
    """
    suffix = "input_global_scale"
    return {
        f"{module}.{suffix}": _ONE
        for module, scheme in schemes.items()
        if scheme.needs_input_scale == suffix
    }


def read_scales(path: Path) -> dict[str, LazyTensor]:
    """The scales of a file, each a single number, in the shape [1] that readers expect.

    Raises:
        CtcliError: the file cannot be read, or holds something else; lists every reason.
    """
    with os_errors_of(str(path), "reading"):
        file = local_file(path.name, path)
    scales: dict[str, LazyTensor] = {}
    problems = []
    for name, tensor in read_weights_file(file).shard.tensors.items():
        if not isinstance(tensor, Stored) or tensor.spec.dtype not in WEIGHT_FLOATS:
            problems.append(f"{path}: {name} has dtype {tensor.spec.dtype}, not a float's.")
        elif tensor.spec.shape not in ((), (1,)):
            problems.append(f"{path}: {name} has shape {list(tensor.spec.shape)}, not one number.")
        else:
            scales[name] = tensor._replace(spec=TensorSpec(tensor.spec.dtype, (1,)))
    if problems:
        raise CtcliError(problems, "Give one float for each scale.")
    return scales


def placed_scales(
    scales: Mapping[str, LazyTensor],
    schemes: Mapping[str, Scheme],
    linears: Modules,
    there: Collection[str],
    tensors: Collection[str],
) -> dict[str, dict[str, LazyTensor]]:
    """The given scales by the tensor beside which they belong.

    Args:
        scales: all that were given, by name.
        schemes: by module.
        linears: these modules, and others.
        there: scales that stay with weights as they are stored.
        tensors: the names of all tensors.

    Raises:
        CtcliError: static schemes lack theirs, or scales are given that nothing takes.
    """
    beside = {
        f"{module}.{scheme.needs_input_scale}": linears[module].weight_name
        for module, scheme in schemes.items()
        if scheme.needs_input_scale
    }
    lacking = {*beside} - {*scales} - {*there}
    if lacking and not scales:
        raise _uncalibrated(schemes, lacking)
    problems = [f"{name}: the scheme is static and needs it." for name in sorted(lacking)]
    parents = {name.rpartition(".")[0].rpartition(".")[0]: name for name in tensors}
    placed: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in scales.items():
        parent = name.rpartition(".")[0] if name.endswith(CACHE_SCALES) else None
        home = parents.get(parent or "") if parent else beside.get(name)
        if home is None:
            problems.append(f"{name}: in the file of input scales, but nothing takes it.")
        else:
            placed.setdefault(home, {})[name] = tensor
    if problems:
        raise CtcliError(
            problems,
            "Static schemes need calibrated scales: give --input-scales FILE.safetensors with "
            "<module>.input_scale (FP8, INT8) or <module>.input_global_scale (NVFP4); or for NVFP4 "
            "--constant-input-scale.",
        )
    return placed


def _uncalibrated(schemes: Mapping[str, Scheme], lacking: Collection[str]) -> CtcliError:
    """The error of static schemes without any scales: names what needs no calibration."""
    names = {s.name for m, s in schemes.items() if f"{m}.{s.needs_input_scale}" in lacking}
    others = {name: WITHOUT_CALIBRATION.get(name.upper()) for name in sorted(names)}
    given = "Give --input-scales FILE.safetensors with <module>.input_scale (FP8, INT8) or "
    return CtcliError(
        [f"{name}: its activations have static scales, which need calibration." for name in others],
        "".join(f"{o} needs no calibration. " for o in others.values() if o)
        + f"{given}<module>.input_global_scale (NVFP4); or for NVFP4 --constant-input-scale.",
    )
