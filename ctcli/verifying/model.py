"""Do the tensors make the model that config.json describes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture
from ctcli.models.config import classes, is_tied, text_config
from ctcli.models.families import FAMILIES, family_of, model_type
from ctcli.models.resolve import resolve
from ctcli.verifying.findings import Finding
from ctcli.verifying.quantized import QuantizedModules
from ctcli.verifying.structure import Snapshot

Shapes = Mapping[str, tuple[int, ...]]
_CONFIG = "config.json"
# Keys of the width between the matrices of a dense MLP.
_WIDTHS = ("intermediate_size", "ffn_dim")


def shape_findings(
    snapshot: Snapshot, quantization: QuantizedModules
) -> tuple[list[Finding], list[str]]:
    """Compare shapes with config.json.

    Returns:
        Differences, and what could not be checked.
    """
    config, shapes = snapshot.config, quantization.shapes
    reason = _not_comparable(snapshot)
    if shapes is None or reason:
        return [], [f"shapes against config.json: {reason or 'some are not known'}"]
    try:
        found = resolve(config, shapes)
    except CtcliError as error:
        prefix = f"{model_type(config)}: "
        lines = dict.fromkeys(line.removeprefix(prefix) for line in error.problems)
        return [Finding("shape", _CONFIG, line) for line in lines], []
    return [*_sizes(found, text_config(config), shapes)], []


def _not_comparable(snapshot: Snapshot) -> str | None:
    """Why shapes cannot be compared; None: they can."""
    if not snapshot.config:
        return "it is missing, empty or not JSON"
    try:
        family_of(snapshot.config)
    except CtcliError:
        return f"the architecture of model type {model_type(snapshot.config)!r} is not known"
    if not snapshot.is_complete:
        return "not all weights files can be read"
    packed = (module for module in snapshot.modules.values() if module.kind == "experts")
    if module := next(packed, None):
        return f"{module.tensor(next(iter(module.parts)))} holds several experts"
    return None


def _sizes(found: Architecture, text: Mapping[str, Any], shapes: Shapes) -> Iterator[Finding]:
    """Sizes of config.json that rewrites do not depend on."""
    name = f"{found.token_embedding}.weight"
    rows, vocabulary = shapes[name][0], text.get("vocab_size")
    if isinstance(vocabulary, int) and rows != vocabulary:
        yield Finding("shape", name, f"it has {rows} rows, and vocab_size is {vocabulary}.")
    width = next((text[key] for key in _WIDTHS if isinstance(text.get(key), int)), None)
    if FAMILIES[found.family].own_width:
        return
    for mlp in found.mlps:
        weight = shapes.get(f"{mlp.output}.weight")
        is_dense = "expert" not in mlp.output and "shared" not in mlp.output
        if width is not None and weight and is_dense and mlp.output not in found.transposed:
            columns = weight[1]
            if columns != width:
                message = f"it has {columns} columns, and the MLPs' width is {width}."
                yield Finding("shape", f"{mlp.output}.weight", message)


def tie_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Where the flag that ties the head to the embedding is not right, by headers alone."""
    config, names = snapshot.config, snapshot.tensors
    heads = {
        module.name
        for module in snapshot.modules.values()
        if module.kind == "head" and any("weight" in part for part in module.parts)
    }
    if not snapshot.is_complete:
        return
    generates = any(
        name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in classes(config)
    )
    if is_tied(config) is False and generates and not heads:
        message = "tie_word_embeddings is false, and the head is not stored."
        yield Finding("config", _CONFIG, message)
    for head in sorted(heads):
        if is_tied(config) and f"{head}.weight_scale" in names:
            message = "it is quantized, and tie_word_embeddings replaces it by the embedding."
            yield Finding("config", head, message)
    if pair := tied_pair(snapshot):
        own, other = (snapshot.tensors[name].spec for name in pair)
        if own != other:
            message = f"tie_word_embeddings replaces it by {pair[1]}, which is not like it."
            yield Finding("config", pair[0], message)


def tied_pair(snapshot: Snapshot) -> tuple[str, str] | None:
    """A head and an embedding that are tied, and stored both: they have to be equal."""
    first = {
        module.kind: f"{module.name}.weight"
        for module in reversed([*snapshot.modules.values()])
        if "weight" in module.parts
    }
    if is_tied(snapshot.config) and {"head", "embedding"} <= first.keys():
        return first["head"], first["embedding"]
    return None
