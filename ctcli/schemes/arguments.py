"""compressed-tensors' vocabulary: how one tensor is quantized, and a scheme of such arguments.

Names and the JSON form are those of compressed-tensors' `QuantizationArgs` and
`QuantizationScheme` (https://github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group", "token")
Strategy = Literal["tensor", "channel", "group", "block", "tensor_group", "token"]


@dataclass(frozen=True)
class QuantizationArgs:
    """How one tensor (weights, or input activations) is quantized.

    Attributes:
        num_bits: bits of an element.
        type: `int` or `float`.
        strategy: which elements share a scale; `token` is for activations only.
        group_size: columns that share a scale (strategies group and tensor_group).
        block_structure: rows and columns of a tile (strategy block).
        symmetric: no zero point.
        dynamic: for activations: scales are computed at run time (`local`: the fine ones).
        scale_dtype: torch's name of the scales' dtype where it is not the weight's.
    """

    num_bits: int
    type: Literal["int", "float"]
    strategy: Strategy
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    symmetric: bool = True
    dynamic: bool | Literal["local"] = False
    scale_dtype: str | None = None

    def to_config(self) -> dict[str, Any]:
        """The JSON form, with all keys."""
        return {
            "actorder": None,
            "block_structure": list(self.block_structure) if self.block_structure else None,
            "dynamic": self.dynamic,
            "group_size": self.group_size,
            "num_bits": self.num_bits,
            "observer": None,
            "observer_kwargs": {},
            "scale_dtype": self.scale_dtype,
            "strategy": self.strategy,
            "symmetric": self.symmetric,
            "type": self.type,
            "zp_dtype": None if self.symmetric else "torch.int8",
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizationArgs:
        """Parse the JSON form, unchecked; missing keys have compressed-tensors' defaults.

        Raises:
            ValueError: unknown keys, or an order of columns that needs calibration data.
        """
        unknown = config.keys() - cls(8, "int", "tensor").to_config().keys()
        if unknown:
            raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
        if config.get("actorder") not in (None, False):
            raise ValueError("actorder needs calibration data")
        group_size = config.get("group_size")
        group_size = None if group_size == -1 else group_size
        inferred: Strategy = "tensor"
        if config.get("group_size"):
            inferred = "group" if group_size else "channel"
        block = config.get("block_structure")
        return cls(
            num_bits=config.get("num_bits", 8),
            type=config.get("type", "int"),
            strategy=config.get("strategy") or inferred,
            group_size=group_size,
            block_structure=(int(block[0]), int(block[1])) if block else None,
            symmetric=config.get("symmetric", True),
            dynamic=config.get("dynamic", False),
            scale_dtype=config.get("scale_dtype"),
        )

    def check(self) -> None:
        """Refuse arguments that contradict themselves.

        Raises:
            ValueError: says which.
        """
        grouped = self.strategy in ("group", "tensor_group")
        if self.type not in ("int", "float") or self.strategy not in STRATEGIES:
            raise ValueError(f"no type {self.type!r} with strategy {self.strategy!r}")
        if grouped != bool(self.group_size) or (self.group_size or 1) < 1:
            raise ValueError(f"strategy {self.strategy} and group_size {self.group_size}")
        if (self.strategy == "block") != bool(self.block_structure):
            raise ValueError(f"strategy {self.strategy} and block_structure {self.block_structure}")
        if self.block_structure and min(self.block_structure) < 1:
            raise ValueError(f"block_structure {self.block_structure}")


@dataclass(frozen=True)
class Scheme:
    """How the linears of a config group are quantized.

    Attributes:
        name: preset name as the user typed it, or a made-up one.
        weights: arguments of the weights.
        input_activations: arguments of the inputs, which only the server acts on.
        format: compressed-tensors' name of the layout on disk.
    """

    name: str
    weights: QuantizationArgs
    input_activations: QuantizationArgs | None
    format: str

    def __hash__(self) -> int:
        return hash(self.name)  # plans ask for it several times for each module

    @property
    def needs_input_scale(self) -> str | None:
        """The suffix of the tensor that static input quantization needs, if it is static."""
        inputs = self.input_activations
        if inputs is None or inputs.dynamic is True:
            return None
        return "input_global_scale" if inputs.dynamic == "local" else "input_scale"

    def to_config(self, targets: list[str]) -> dict[str, Any]:
        """The JSON form of a config group."""
        inputs = self.input_activations
        return {
            "format": self.format,
            "input_activations": inputs.to_config() if inputs else None,
            "output_activations": None,
            "targets": targets,
            "weights": self.weights.to_config(),
        }
