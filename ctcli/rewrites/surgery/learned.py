"""Learned rotation matrices, as SpinQuant publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ctcli.errors import CtcliError, os_errors_of

if TYPE_CHECKING:
    import torch


def read_rotations(path: Path) -> Mapping[str, torch.Tensor]:
    """The matrices of a file by name: torch's pickle, or safetensors.

    Raises:
        CtcliError: the file cannot be read, or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    with os_errors_of(str(path), "reading"):
        try:
            if path.suffix == ".safetensors":
                found = load_file(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch's unpickler does what the first bytes tell it
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
