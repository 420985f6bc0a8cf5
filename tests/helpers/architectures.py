"""What an architecture's record says, proved on a tiny model: logits before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture, Operation
from ctcli.models.resolve import resolve
from tests.helpers.every_model import config_of
from tests.helpers.surgery import (
    center,
    folded,
    fuse_norms,
    orthogonal,
    rotate_heads,
    rotate_stream,
    unfolded,
    untie,
)
from tests.helpers.tiny_models import EXACT, difference, load, logits, read, write

CHAINS: Mapping[str, tuple[Operation, ...]] = {
    "fuse-norms": ("fuse-norms",),
    "R1": ("fuse-norms", "R1"),
    "R2": ("R2",),
    "R1,R2": ("fuse-norms", "R1", "R2"),
}
OPERATIONS: Mapping[Operation, Callable[[Architecture, dict[str, Tensor]], None]] = {
    "fuse-norms": fuse_norms,
    "center": center,
    "R1": lambda parts, tensors: rotate_stream(
        parts,
        tensors,
        orthogonal(parts.hidden_size, 7, keeps_ones=parts.norm_kind == "layer"),
    ),
    "R2": lambda parts, tensors: rotate_heads(parts, tensors, 11),
}


def made(folder: Path, model_type: str, *, tied: bool, hidden: int = 64, **more: Any) -> Path:
    """Save a tiny model whose gains are far from one, and whose biases are far from zero."""
    return saved(
        folder, AutoModelForCausalLM, config_of(model_type, tied=tied, hidden=hidden, **more)
    )


def saved(folder: Path, auto: Any, config: Any) -> Path:
    """The same for the class and the config of a model."""
    model = auto.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(len(config.model_type))
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if values.is_floating_point():
                values.copy_(_random(name, values, generator))
    model.save_pretrained(folder)
    return folder


def _random(name: str, values: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(values.shape, generator=generator)
    if values.ndim == 1 and name.endswith("weight"):  # a norm's gain
        return 0.4 + 2.1 * torch.rand(values.shape, generator=generator)
    if values.ndim < 2:
        return 0.5 * noise if name.endswith("bias") else values + 0.1 * noise
    if "decay" in name or "slope" in name:  # of linear attention: computed, not learned
        return values
    is_embedding = any(part in name for part in ("embed", "wte", "wpe", "transformer.w."))
    return noise if is_embedding else noise / values.shape[-1] ** 0.5


def changed(
    parts: Architecture,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    operations: Sequence[Operation],
    folder: Path,
) -> Any:
    """The model with operations done to its tensors as its architecture says, loaded again."""
    own = unfolded(parts, {name: tensor.clone() for name, tensor in tensors.items()})
    untie(parts, own)
    for operation in operations:
        OPERATIONS[operation](parts, own)
    new = json.loads(json.dumps(config))
    text = new.get("text_config", new)
    new["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    if "fuse-norms" in operations and parts.bias_switch:
        text[parts.bias_switch.key] = True
    return load(write(folder, new, folded(parts, own, tensors)))


def proof(model_type: str, folder: Path, *, tied: bool = False, **more: Any) -> dict[str, str]:
    """What becomes of each chain of operations: `exact`, why it is refused, or how wrong it is."""
    made(folder / "source", model_type, tied=tied, **more)
    return proof_of(folder)


def proof_of(folder: Path, answer: Callable[[Any], Tensor] = logits) -> dict[str, str]:
    """The same for the model in `<folder>/source`, by what it answers."""
    config, tensors = read(folder / "source")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        parts = resolve(config, shapes)
    except CtcliError as refusal:
        return dict.fromkeys(CHAINS, f"unknown: {refusal.problems[0]}")
    before = answer(load(folder / "source"))
    found = {}
    for name, operations in CHAINS.items():
        refused = [parts.refusals[each] for each in operations if each in parts.refusals]
        if refused:
            found[name] = f"refused: {refused[-1]}"
            continue
        after = answer(changed(parts, config, tensors, operations, folder / name))
        error = difference(after, before)
        found[name] = "exact" if error <= EXACT else f"WRONG by {error:.1e}"
    return found
