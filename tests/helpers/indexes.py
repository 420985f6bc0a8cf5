"""Names of tensors of published models, folded by number, and what becomes of each module.

A file in `fixtures/indexes` has one line a pattern of modules: what is done, the modules with the
ranges of their numbers in braces, and the last components of their tensors' names.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.storage.opening import open_checkpoint
from tests.helpers.checkpoints import write_raw
from tests.helpers.frozen_sources import FIXTURES

FOLDER = FIXTURES / "indexes"
# What config.json says of packed experts of the size that they have here.
_SIZES = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts"), 2),
}
_STACKED = re.compile(
    r".*(experts\.(gate_up|down)_proj|block_sparse_moe\.(in|out)put_linear\.weight)"
)


@dataclass(frozen=True)
class Row:
    """Modules that differ in numbers alone, their tensors, and what becomes of them."""

    fate: str
    modules: str
    leaves: tuple[str, ...]

    @property
    def ends(self) -> list[str]:
        """Names of the modules, of each range of numbers the first and the last."""
        parts = re.split(r"\{([^}]*)\}", self.modules)
        choices = [[part] if i % 2 == 0 else _ends(part) for i, part in enumerate(parts)]
        return ["".join(each) for each in itertools.product(*choices)]


def _ends(ranges: str) -> list[str]:
    return [number for part in ranges.split(",") for number in dict.fromkeys(part.split("-"))]


def read_index(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """What config.json says of a model, and its rows."""
    head, _, body = path.read_text().partition("\n\n")
    config = json.loads(head.partition("config: ")[2])
    rows = (re.split(r"  +", line) for line in body.splitlines())
    return config, [Row(fate, modules, tuple(leaves.split())) for fate, modules, leaves in rows]


def fates(config: Mapping[str, Any], rows: list[Row], folder: Path) -> dict[str, set[str]]:
    """What quantizing does by default to the modules of each row."""
    names = [f"{m}.{leaf}".lstrip(".") for row in rows for m in row.ends for leaf in row.leaves]
    header, start = {}, 0
    for name in names:
        shape = _shape(name)
        end = start + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    write_raw(folder / "model.safetensors", header, bytes(start))
    text = {**_SIZES, **config.get("text_config", {})}
    sized = {**_SIZES, **config, **({"text_config": text} if "text_config" in config else {})}
    (folder / "config.json").write_text(json.dumps(sized))
    options = QuantizeOptions(scheme=("FP8_DYNAMIC",), target="none")
    report = quantize(open_checkpoint(str(folder)), options)[1]
    told: dict[str, str] = dict.fromkeys(report.selection.schemes, "quantized")
    told |= {m: "unfamiliar" for m in told if re.sub(r"(?<=\.)\d+", "*", m) in report.unfamiliar}
    told |= report.selection.kept
    return {row.modules: {_fate(row, module, told) for module in row.ends} for row in rows}


def _shape(name: str) -> list[int]:
    if _STACKED.fullmatch(name):
        out, of = 8 if "down_proj" in name else 16, 8
        return [2, of, out] if ".feed_forward." in name else [2, out, of]  # Llama-4's are [in, out]
    return [8, 8] if name.endswith("weight") else [8]


def _fate(row: Row, module: str, told: Mapping[str, str]) -> str:
    """What becomes of a module, or of the tensors of experts in it, or of each expert."""
    names = (module, *(f"{module}.{leaf}" for leaf in row.leaves))
    found = {told[name] for name in names if name in told}
    if not found and module.endswith(".experts"):
        found = {f"{fate} one by one" for name, fate in told.items() if name.startswith(module)}
    return " and ".join(sorted(found)) or "no matrix"
