"""The options of `ctcli dequantize` and `ctcli convert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ctcli.formats.sources.presharded import parts_by_pattern, presharded
from ctcli.ops.dtypes import DTYPES, WEIGHT_FLOATS
from ctcli.options import OptionError, option
from ctcli.rewrites.options import RewriteOptions, ct_version, shard_size
from ctcli.rewrites.quantizing.config import Release

OutputDtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class SourceOptions(RewriteOptions):
    """The options of a command that reads quantized weights."""

    presharded: tuple[str, ...] = presharded()

    def __post_init__(self) -> None:
        """Parse what the options say."""
        _ = self.recipe, self.parts

    @cached_property
    def parts(self) -> Mapping[str, int]:
        """Into how many parts the rows of modules are cut, by pattern."""
        return parts_by_pattern(self.presharded)


@dataclass(frozen=True)
class DequantizeOptions(SourceOptions):
    """Turn a checkpoint that is quantized already into a dense one.

    Weights become floats, computed in float32 and rounded once; all other tensors stay as they are.
    Reads compressed-tensors; FP8 (blocks, rows, tensors; DeepSeek, Qwen, Mistral, fbgemm), MXFP8,
    MXFP4 (DeepSeek, gpt-oss); ModelOpt, Quark, GPTQ, AWQ, AutoRound and bitsandbytes.
    """

    dtype: OutputDtype | None = option(
        None, "Dtype of the weights.", "what config.json says, or the norms' own"
    )
    keep_kv_scales: bool = option(False, "Keep the scales of a quantized key-value cache.")
    max_shard_size: int | None = shard_size()

    @property
    def tag(self) -> str | None:
        """Safetensors tag of the dtype."""
        return next((t for t in WEIGHT_FLOATS if DTYPES[t].torch_name == self.dtype), None)


@dataclass(frozen=True)
class ConvertOptions(SourceOptions):
    """Write a checkpoint that is quantized already as a compressed-tensors one.

    The numbers stay the same: codes and scales are copied, or packed anew. Weights that
    compressed-tensors has no format for are refused, or quantized anew.
    """

    to: Literal["compressed-tensors", "fp8", "nvfp4"] = option(
        "compressed-tensors",
        "What is written: fp8 is the spelling of DeepSeek's and Qwen's checkpoints, for FP8 blocks "
        "of one size; nvfp4 is compressed-tensors with MXFP4 as NVFP4A16, where that is exact.",
    )
    requantize: str | None = option(
        None,
        "Scheme that weights get whose numbers cannot stay.",
        "they are refused",
        metavar="SCHEME",
    )
    ct_version: Release = ct_version()
    max_shard_size: int | None = shard_size()

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        super().__post_init__()
        if self.requantize and self.to == "fp8":
            raise OptionError("--requantize goes with --to compressed-tensors.")
