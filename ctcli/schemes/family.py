"""The settings that numeric formats work under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctcli.schemes.arguments import Scheme

Observer = Literal["minmax", "mse", "signed", "pnorm"]
ComputeDtype = Literal["float32", "weight"]


@dataclass(frozen=True)
class Numerics:
    """Everything that decides the bytes of one quantized weight, but for the weight.

    Attributes:
        scheme: the scheme.
        dtype: safetensors tag of the weight's dtype, D.
        compute_dtype: `float32` keeps the quotient weight / scale in float32, as
            compressed-tensors does on accelerators; `weight` rounds it to D, as it does on CPU.
        observer: `minmax` takes the range of each group, `mse` the shrunk range with the least
            squared error; `signed` gives the largest element the lowest code, `pnorm` takes the
            scale of either sign with the least sum of fourth powers of errors.
    """

    scheme: Scheme
    dtype: str
    compute_dtype: ComputeDtype
    observer: Observer


@dataclass(frozen=True)
class Execution:
    """How to compute, without influence on the bytes of finite weights.

    Attributes:
        device: torch's name of the device.
        allow_nonfinite: quantize NaN and infinities instead of refusing them.
    """

    device: str
    allow_nonfinite: bool
