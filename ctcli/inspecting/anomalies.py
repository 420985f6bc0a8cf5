"""What is out of the ordinary about a checkpoint's headers, index and config.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from ctcli.checkpoint.value import Checkpoint, Modules
from ctcli.formats.declared import Declaration
from ctcli.inspecting.weights import InspectedWeight
from ctcli.lazy.tensors import TensorSpec
from ctcli.models.config import classes, is_tied, text_config
from ctcli.ops.dtypes import DTYPES, FLOATS, WEIGHT_FLOATS

# Small tensors that models keep in float32 beside 16-bit weights.
_WIDER = ("e_score_correction_bias", ".A_log", ".dt_bias")
_SHOWN = 3  # names in a line
Specs = Mapping[str, TensorSpec]


def anomalies(
    checkpoint: Checkpoint, weights: Mapping[str, InspectedWeight], declared: Declaration | None
) -> list[str]:
    """Everything, one line each.

    Args:
        checkpoint: just opened.
        weights: its parameters.
        declared: what config.json says of quantization.
    """
    specs = checkpoint.specs
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
        *_head(checkpoint),
        *_quantization(checkpoint, declared),
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
    usual = {name: spec for name, spec in plain.items() if not name.endswith(_WIDER)}
    found = {dtype: names for dtype, names in _by_dtype(usual).items() if dtype in WEIGHT_FLOATS}
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


def stored_heads(checkpoint: Checkpoint) -> list[str]:
    """The modules that are heads."""
    return [module.name for module in checkpoint.modules.values() if module.kind == "head"]


def _head(checkpoint: Checkpoint) -> Iterator[str]:
    heads, named = stored_heads(checkpoint), classes(checkpoint.config)
    if is_tied(checkpoint.config) and heads:
        yield f"{heads[0]}: it is stored, and config.json ties it to the embedding."
    generates = any("For" in name and "Generat" in name for name in named)
    generates |= any(name.endswith("ForCausalLM") for name in named)
    if is_tied(checkpoint.config) is False and not heads and generates:
        yield "lm_head: it is not stored, and config.json does not tie it to the embedding."


def _quantization(checkpoint: Checkpoint, declared: Declaration | None) -> Iterator[str]:
    """Where the tensors are not what is declared."""
    modules = checkpoint.modules
    scaled = [name for name, module in modules.items() if "weight_scale" in module.parts]
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
        name
        for name, module in modules.items()
        if len(module.shape) == 2 and module.kind not in ("norm", "embedding")
        if module.weight and module.weight.spec.dtype in FLOATS
    ]
    if missing := [name for name in plain if declared.group_of(name)]:
        yield f"not quantized, though config.json says so: {_some(missing)}."
    yield from _sparsely_packed(modules, declared)


def _sparsely_packed(modules: Modules, declared: Declaration) -> Iterator[str]:
    """Compressed-tensors before 0.19 put whole elements into each word, under the same format."""
    found = []
    for name, module in modules.items():
        packed, scale = module.parts.get("weight_packed"), module.parts.get("weight_scale")
        group = declared.group_of(name) if packed and scale else None
        if packed is None or scale is None or group is None or packed.spec.dtype != "I32":
            continue
        bits, size = group.scheme.weights.num_bits, group.scheme.weights.group_size
        if size and 32 % bits:
            columns = scale.spec.shape[-1] * size
            sparse = -(-columns // (32 // bits))
            if packed.spec.shape[-1] == sparse != -(-columns * bits // 32):
                found.append(name)
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
