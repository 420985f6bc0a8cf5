"""The model card of a result: the source's, and how this checkpoint was made and is used.

Its front matter is YAML (https://yaml.org), whose reader comes with huggingface_hub.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ctcli import __version__
from ctcli.checkpoint.value import Checkpoint, Shard, StepTable
from ctcli.lazy.tensors import content_of
from ctcli.models.config import table
from ctcli.ops.dtypes import DTYPE_RANK
from ctcli.redaction import redact
from ctcli.storage.errors_table import CARD, errors_table, measured_modules
from ctcli.units import format_bytes

# What is said there of the source's weights and does not hold for others, or is said anew.
_OF_THE_SOURCE = ("base_model", "base_model_relation", "model-index", "model_name", "new_version")
_FRONT = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LONGEST_FRONT = 100_000  # characters
_RECIPE_ONLY = "reindex"  # a step that changes no weight


def with_card(checkpoint: Checkpoint, is_served: bool = True) -> Checkpoint:
    """A result on this disk with its card, if its weights are other than the source's.

    The card is the same wherever the result lies and however often it is made.

    Args:
        checkpoint: the result.
        is_served: whether vLLM takes it.
    """
    if all(step["use"] == _RECIPE_ONLY for step in checkpoint.steps):
        return checkpoint
    card = model_card(checkpoint, is_served=is_served)
    return replace(checkpoint, files={**checkpoint.files, CARD: card})


def model_card(
    checkpoint: Checkpoint,
    command: str | None = None,
    name: str = ".",
    token: str | None = None,
    is_served: bool = True,
) -> bytes:
    """The model card of what `checkpoint` will be, UTF-8.

    Licence, language, tags and whatever else the source's front matter says stay; evaluation
    results, which were measured on other weights, do not. The text of the source's card follows
    behind sections on how this checkpoint is used and how it was made.

    Args:
        checkpoint: what is written; its files hold the source's card, if there is one.
        command: the command as it was typed; None: the recipe beside the card tells it.
        name: what the checkpoint is loaded by.
        token: a secret that must not appear.
        is_served: whether vLLM takes it.
    """
    source = checkpoint.files.get(CARD, b"")
    content = source if isinstance(source, bytes) else content_of(source)
    known, text = _parse(content.decode(errors="replace"))
    front = {key: value for key, value in known.items() if key not in _OF_THE_SOURCE}
    front |= _facts(checkpoint, known)
    lines = ["---", _as_yaml(front).strip(), "---", ""]
    lines += [
        redact(line, token)
        for line in (*_use(checkpoint, name, is_served), *_made(checkpoint, command))
    ]
    lines += _measured(checkpoint)
    if text.strip():
        lines += ["", "## Model card of the source", "", text.strip()]
    return ("\n".join(lines) + "\n").encode()


def _parse(content: str) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card; front matter that cannot be read is text."""
    found = _FRONT.match(content)
    if found is None or len(found[1]) > _LONGEST_FRONT:
        return {}, content
    import yaml

    try:
        data = yaml.safe_load(found[1])
        _as_yaml(data)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        return {}, content
    known = data if isinstance(data, dict) else {}
    return {k: v for k, v in known.items() if isinstance(k, str)}, content[found.end() :]


def _as_yaml(data: Any) -> str:
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000))


def _facts(checkpoint: Checkpoint, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the front matter says of this checkpoint."""
    facts: dict[str, Any] = {}
    quantization = table(checkpoint.config.get("quantization_config"))
    if "library_name" not in known and checkpoint.config.get("architectures"):
        facts["library_name"] = "transformers"
    if quantization:
        tags = known.get("tags")
        tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        method = quantization.get("quant_method")
        new = [method, *_schemes(checkpoint.steps)] if isinstance(method, str) else []
        facts["tags"] = [*dict.fromkeys([*tags, *new])]
    base = checkpoint.origin.name if checkpoint.origin.commit else known.get("base_model")
    if base:
        facts["base_model"] = base
        if any(step["use"] == "quantize" for step in checkpoint.steps):
            facts["base_model_relation"] = "quantized"
    return facts


def _schemes(steps: Sequence[StepTable]) -> Iterator[str]:
    """The names of the presets, in lower case, as hubs have them for tags."""
    for step in steps:
        given = step.get("scheme") or ()
        for text in [given] if isinstance(given, str) else given:
            yield str(text).rpartition("=")[2].lower().replace("_", "-")


def _use(checkpoint: Checkpoint, name: str, is_served: bool) -> Iterator[str]:
    """How to load it, where vLLM and transformers are the tools for it."""
    if not (checkpoint.config.get("architectures") and checkpoint.config.get("model_type")):
        return
    place = " in this folder" if name == "." else ""
    yield from ("## Use", "")
    if is_served:
        yield from (f"With vLLM{place}:", "", f"    vllm serve {name}", "")
    yield from ("With transformers:", "", "    from transformers import AutoModelForCausalLM")
    yield from (f"    model = AutoModelForCausalLM.from_pretrained({json.dumps(name)})", "")


def _made(checkpoint: Checkpoint, command: str | None) -> list[str]:
    origin = checkpoint.origin
    commit = f" at commit `{origin.commit}`" if origin.commit else ""
    typed = ["", f"    {' '.join(command.split())}", ""] if command else [""]
    return [
        "## How this checkpoint was made",
        "",
        f"ctcli {__version__} rewrote the weights of `{origin.name}`{commit}:",
        *typed,
        *map(_said, checkpoint.steps),
        "",
        *_constants(checkpoint),
        *_sizes(checkpoint),
    ]


def _constants(checkpoint: Checkpoint) -> Iterator[str]:
    """What was not calibrated."""
    if any(step.get("constant_input_scale") for step in checkpoint.steps):
        yield "The global scale of activations is 1.0 in every module: nothing was calibrated."
        yield ""


def _said(step: StepTable) -> str:
    options = [
        f"{key} = {json.dumps(value, ensure_ascii=False, default=str)}"
        for key, value in step.items()
        if key != "use" and value is not None
    ]
    return f"- {step['use']}" + (f": {', '.join(options)}" if options else "")


def _measured(checkpoint: Checkpoint) -> list[str]:
    """What quantizing costs, whose numbers are filled in when they are known."""
    if not (modules := measured_modules(checkpoint)):
        return []
    said = (
        "Relative root mean square error of the quantized weights, against those that were "
        "rounded: of all modules of a kind together, and the largest of one."
    )
    return ["", "## Measured errors", "", said, "", *errors_table(modules)]


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
