"""`ctcli quantize` in this process, and readings of what it made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ctcli.engine.plan import Settings, make_plan
from ctcli.engine.run import execute
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.rewrites.quantizing.report import QuantizeReport
from ctcli.schemes.presets import PRESETS
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import open_checkpoint

# Presets that compressed-tensors has from release 0.20 on: the one that tests use, vLLM 0.32 and
# transformers 5.17 do not know them.
NEW_PRESETS = ("MXFP4XFP8", "MXFP6A16", "MXFP6A8")
KNOWN_PRESETS = tuple(name for name in PRESETS if name not in NEW_PRESETS)


def run_quantize(
    source: Path,
    destination: Path,
    *schemes: str,
    workers: int = 2,
    advance: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> QuantizeReport:
    """Quantize `source` into `destination`; options are those of `QuantizeOptions`."""
    chosen = QuantizeOptions(scheme=schemes, **options)
    checkpoint, report = quantize(open_checkpoint(str(source)), chosen)
    plan = make_plan(lay_out(checkpoint), destination, Settings(workers, 2 * 10**9))
    return report.with_errors(execute(plan, advance))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, read by the safetensors package."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """The quantization_config of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    quantization: dict[str, Any] = config["quantization_config"]
    return quantization
