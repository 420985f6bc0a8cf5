"""The model card of a published checkpoint: the source's, and how this one was made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, get_token

from ctcli import __version__
from ctcli.checkpoint.value import Checkpoint, Shard, Step
from ctcli.lazy.tensors import content_of
from ctcli.ops.dtypes import DTYPE_RANK
from ctcli.redaction import redact
from ctcli.storage.hub.errors import silence_client
from ctcli.units import format_bytes

CARD = "README.md"
# What is said there of the source's weights and does not hold for others, or is said anew.
_OF_THE_SOURCE = ("base_model", "base_model_relation", "model-index", "model_name", "new_version")


def model_card(checkpoint: Checkpoint, command: str) -> bytes:
    """The model card of what `checkpoint` will be, UTF-8.

    Licence, language, tags and whatever else the source's front matter says stay; evaluation
    results, which were measured on other weights, do not. The text of the source's card follows
    behind a section on how this checkpoint was made.

    Args:
        checkpoint: what is published; its files hold the source's card, if there is one.
        command: the command as it was typed.
    """
    source = checkpoint.files.get(CARD, b"")
    content = source if isinstance(source, bytes) else content_of(source)
    known, text = _parse(content.decode(errors="replace"))
    data = {key: value for key, value in known.items() if key not in _OF_THE_SOURCE}
    if base := checkpoint.origin.name if checkpoint.origin.commit else known.get("base_model"):
        data["base_model"] = base
        if any(step["use"] == "quantize" for step in checkpoint.steps):
            data["base_model_relation"] = "quantized"
    front = ModelCardData(**data, ignore_metadata_errors=True).to_yaml(original_order=[*known])
    sections = ["---", front, "---", "", *_made(checkpoint, command)]
    if text.strip():
        sections += ["", "## Model card of the source", "", text.strip()]
    return ("\n".join(sections) + "\n").encode()


def _parse(content: str) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card; a card whose front matter cannot be read is all text."""
    silence_client()
    try:
        card = ModelCard(content, ignore_metadata_errors=True)
        return dict(card.data.to_dict()), card.text  # type: ignore[no-untyped-call]
    except Exception:  # whatever the parser makes of what somebody wrote
        return {}, content


def _made(checkpoint: Checkpoint, command: str) -> list[str]:
    origin = checkpoint.origin
    commit = f" at commit `{origin.commit}`" if origin.commit else ""
    text = [
        "## How this checkpoint was made",
        "",
        f"ctcli {__version__} rewrote the weights of `{origin.name}`{commit}:",
        "",
        f"    {' '.join(command.split())}",
        "",
        *map(_said, checkpoint.steps),
        "",
        *_constants(checkpoint),
        *_sizes(checkpoint),
    ]
    return [redact(line, get_token()) for line in text]


def _constants(checkpoint: Checkpoint) -> list[str]:
    """What was not calibrated."""
    if not any(step.get("constant_input_scale") for step in checkpoint.steps):
        return []
    return [
        "The global scale of activations is 1.0 in every module: nothing was calibrated.",
        "",
    ]


def _said(step: Step) -> str:
    options = [
        f"{key} = {json.dumps(value, ensure_ascii=False, default=str)}"
        for key, value in step.items()
        if key != "use" and value is not None
    ]
    return f"- {step['use']}" + (f": {', '.join(options)}" if options else "")


def _sizes(checkpoint: Checkpoint) -> list[str]:
    """A table of tensor data by dtype, in the source and here."""
    before = _bytes_by_dtype(checkpoint.source_shards.values())
    after = _bytes_by_dtype(checkpoint.shards)
    dtypes = sorted(before.keys() | after.keys(), key=DTYPE_RANK.__getitem__, reverse=True)
    rows = [(dtype, before[dtype], after[dtype]) for dtype in dtypes]
    rows.append(("together", before.total(), after.total()))
    return [
        "| tensor data | source | here |",
        "| --- | ---: | ---: |",
        *(f"| {label} | {format_bytes(old)} | {format_bytes(new)} |" for label, old, new in rows),
        f"| files | {len(checkpoint.source_shards)} | {len(checkpoint.shards)} |",
    ]


def _bytes_by_dtype(shards: Iterable[Shard]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for shard in shards:
        for tensor in shard.tensors.values():
            sizes[tensor.spec.dtype] += tensor.spec.nbytes
    return sizes
