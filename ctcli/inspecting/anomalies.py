"""What is out of the ordinary about a checkpoint's headers, index and config.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from ctcli.checkpoint.value import Checkpoint
from ctcli.formats.declared import Declaration
from ctcli.inspecting.weights import Weight
from ctcli.lazy.dtypes import DTYPES, FLOATS, WEIGHT_FLOATS
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.config import classes, is_tied, text_config
from ctcli.models.protected import is_embedding, is_head, is_norm

_SHOWN = 3  # names in a line
Specs = Mapping[str, TensorSpec]


def anomalies(
    checkpoint: Checkpoint, weights: Mapping[str, Weight], declared: Declaration | None
) -> list[str]:
    """Everything, one line each.

    Args:
        checkpoint: just opened.
        weights: its parameters.
        declared: what config.json says of quantization.
    """
    specs = {name: tensor.spec for name, tensor in checkpoint.tensors()}
    plain = {
        name: specs[name]
        for name, weight in weights.items()
        if name in specs and not weight.is_quantized
    }
    return [
        *checkpoint.warnings,
        *_total_size(checkpoint),
        *_empty(specs),
        *_odd_dtypes(plain),
        *_mixed_dtypes(plain),
        *_declared_dtype(checkpoint, plain),
        *_head(checkpoint, specs),
        *_quantization(specs, declared),
    ]


def _total_size(checkpoint: Checkpoint) -> Iterator[str]:
    declared = checkpoint.index_total_size
    if declared is not None and declared != checkpoint.nbytes:
        yield (
            f"{checkpoint.index_name}: its total_size is {declared!r}, and the tensors have "
            f"{checkpoint.nbytes} bytes."
        )


def _empty(specs: Specs) -> Iterator[str]:
    if names := [name for name, spec in specs.items() if 0 in spec.shape]:
        yield f"{_tensors(names)} without elements: {_some(names)}."


def _odd_dtypes(plain: Specs) -> Iterator[str]:
    found = _by_dtype(plain)
    for dtype in sorted(found.keys() - {*WEIGHT_FLOATS}):
        yield f"odd dtype {dtype}: {_tensors(found[dtype])}: {_some(found[dtype])}."


def _mixed_dtypes(plain: Specs) -> Iterator[str]:
    found = {dtype: names for dtype, names in _by_dtype(plain).items() if dtype in WEIGHT_FLOATS}
    common = max(found, key=lambda dtype: sum(plain[n].nbytes for n in found[dtype]), default="")
    for dtype in sorted(found.keys() - {common}):
        names = found[dtype]
        yield f"mixed dtypes: {_tensors(names)} in {dtype} beside {common}: {_some(names)}."


def _declared_dtype(checkpoint: Checkpoint, plain: Specs) -> Iterator[str]:
    config = checkpoint.config
    text = text_config(config)
    keys = ("dtype", "torch_dtype")
    said = next((part[key] for part in (config, text) for key in keys if part.get(key)), None)
    stored = {DTYPES[spec.dtype].torch_name for spec in plain.values() if spec.dtype in FLOATS}
    if said and stored and str(said).removeprefix("torch.") not in stored:
        yield f"config.json: its dtype is {said}, and no weight is."


def stored_heads(specs: Specs) -> list[str]:
    """The modules that are heads."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in specs)
    return [module for module in modules if is_head(module)]


def _head(checkpoint: Checkpoint, specs: Specs) -> Iterator[str]:
    heads, named = stored_heads(specs), classes(checkpoint.config)
    if is_tied(checkpoint.config) and heads:
        yield f"{heads[0]}: it is stored, and config.json ties it to the embedding."
    generates = any("For" in name and "Generat" in name for name in named)
    generates |= any(name.endswith("ForCausalLM") for name in named)
    if is_tied(checkpoint.config) is False and not heads and generates:
        yield "lm_head: it is not stored, and config.json does not tie it to the embedding."


def _quantization(specs: Specs, declared: Declaration | None) -> Iterator[str]:
    """Where the tensors are not what is declared."""
    scaled = [name.removesuffix(".weight_scale") for name in specs if name.endswith("weight_scale")]
    if declared is None:
        if scaled:
            yield f"quantized, and config.json does not say so: {_some(scaled)}."
        return
    yield from declared.problems
    if not declared.groups:
        return
    extra = [module for module in scaled if declared.group_of(module) is None]
    if extra:
        yield f"quantized, but config.json leaves them alone: {_some(extra)}."
    plain = [
        module
        for name, spec in specs.items()
        if name.endswith(".weight") and len(spec.shape) == 2 and spec.dtype in FLOATS
        if not is_norm(module := name.removesuffix(".weight")) and not is_embedding(module)
    ]
    if missing := [module for module in plain if declared.group_of(module)]:
        yield f"not quantized, though config.json says so: {_some(missing)}."
    yield from _sparsely_packed(specs, declared)


def _sparsely_packed(specs: Specs, declared: Declaration) -> Iterator[str]:
    """Compressed-tensors before 0.19 put whole elements into each word, under the same format."""
    found = []
    for name, spec in specs.items():
        module = name.removesuffix(".weight_packed")
        group = declared.group_of(module) if name != module else None
        scale = specs.get(f"{module}.weight_scale")
        if group is None or scale is None or spec.dtype != "I32":
            continue
        bits, size = group.scheme.weights.num_bits, group.scheme.weights.group_size
        if size and 32 % bits:
            columns = scale.shape[-1] * size
            sparse = -(-columns // (32 // bits))
            if spec.shape[-1] == sparse != -(-columns * bits // 32):
                found.append(module)
    if found:
        yield f"packed as compressed-tensors did before 0.19, misread today: {_some(found)}."


def _by_dtype(specs: Specs) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, spec in specs.items():
        found[spec.dtype].append(name)
    return found


def _tensors(names: list[str]) -> str:
    return "one tensor" if len(names) == 1 else f"{len(names)} tensors"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
