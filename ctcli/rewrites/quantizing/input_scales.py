"""Calibrated scales that a user supplies: of static activations, and of the key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.ops.dtypes import WEIGHT_FLOATS
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
