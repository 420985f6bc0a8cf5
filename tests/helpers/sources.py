"""Checkpoints that other packages quantized, each with the floats that those packages read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from torch import Tensor

SOURCES = Path(__file__).parent.parent.parent / "fixtures" / "sources"


@dataclass(frozen=True)
class SourceCase:
    """One folder of `fixtures/sources`; its README says who wrote it and how exact it is."""

    name: str

    @property
    def checkpoint(self) -> Path:
        """The folder of the quantized checkpoint."""
        return SOURCES / self.name / "checkpoint"

    def expected(self) -> dict[str, NDArray[Any]]:
        """The float32 weights that the other package reads, by the names of the dense weights."""
        return load_file(SOURCES / self.name / "expected.safetensors")

    def logits(self) -> Tensor:
        """What transformers computes from the checkpoint itself for the tokens 0 to 15."""
        return load_tensors(SOURCES / self.name / "logits.safetensors")["logits"]

    @property
    def converted(self) -> Path | None:
        """The tensors that compressed-tensors' own converter makes of it, if there is one."""
        path = SOURCES / "converted" / f"{self.name}.safetensors"
        return path if path.exists() else None


def source_cases(prefix: str = "") -> list[SourceCase]:
    """Every case whose name starts with `prefix`, in the order of their names."""
    folders = sorted(path.parent.name for path in SOURCES.glob("*/expected.safetensors"))
    return [SourceCase(name) for name in folders if name.startswith(prefix)]
