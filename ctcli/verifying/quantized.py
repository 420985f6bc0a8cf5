"""Which linears are quantized, how, and whether each has exactly the tensors that takes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctcli.formats.declared import QUANT_METHOD, Declaration, read_declaration
from ctcli.formats.quantized import quantized_format
from ctcli.lazy.tensors import StoredTensor, TensorSpec
from ctcli.models.fused import fused_sets
from ctcli.models.protected import is_embedding, is_norm, protected_kind
from ctcli.schemes import format_of
from ctcli.verifying.findings import Finding
from ctcli.verifying.linear import FLOATS, PARTS, LinearCheck, QuantizedModule
from ctcli.verifying.structure import Snapshot

_CONFIG = "config.json"
CACHE_SCALES = ("k_scale", "v_scale", "q_scale")


@dataclass(frozen=True)
class Quantization:
    """What is quantized in a checkpoint.

    Attributes:
        declared: what config.json says; None: nothing.
        modules: the sound modules, by name.
        shapes: of all parameters before quantization, by name, quantized or not; None: they cannot
            be told.
    """

    declared: Declaration | None
    modules: Mapping[str, QuantizedModule]
    shapes: Mapping[str, tuple[int, ...]] | None


def quantization_of(snapshot: Snapshot) -> tuple[Quantization, list[Finding], list[str]]:
    """Compare quantized tensors with what config.json declares.

    Returns:
        What is quantized, every difference, and what could not be checked.
    """
    specs = {name: tensor.spec for name, tensor in snapshot.tensors.items()}
    declared = read_declaration(snapshot.config)
    if declared is None:
        findings = []
        if marked := quantized_format(specs.items(), snapshot.config):
            message = f"it has no quantization_config, but there are tensors of {marked}."
            findings.append(Finding("config", _CONFIG, message))
        return Quantization(None, {}, _plain_shapes(specs)), findings, []
    if declared.method != QUANT_METHOD:
        note = f"quantization: its method is {declared.method}, not {QUANT_METHOD}"
        return Quantization(declared, {}, None), [], [note]
    findings = [*_config_findings(declared, snapshot.config)]
    if any(not _is_readable(pattern) for pattern in _patterns(declared)):
        note = "quantized tensors, since config.json has patterns that cannot be read"
        return Quantization(declared, {}, None), findings, [note]
    parts = _by_module(snapshot.tensors)
    modules, shapes = {}, _plain_shapes(specs)
    for module, tensors in parts.items():
        found = LinearCheck(module, tensors, declared.group_of(module))
        findings += found.findings
        if found.shape:
            shapes[f"{module}.weight"] = found.shape
        if found.quantized:
            modules[module] = found.quantized
    findings += [*_group_findings(declared, parts), *_fused_findings(declared, parts)]
    findings += _cache_findings(snapshot)
    is_known = all(f"{module}.weight" in shapes for module in parts)
    return Quantization(declared, modules, shapes if is_known else None), findings, []


def _patterns(declared: Declaration) -> list[str]:
    targets = [target for group in declared.groups for target in group.targets]
    return [*declared.ignore, *targets]


def _is_readable(pattern: object) -> bool:
    """Whether a pattern is a name or an expression."""
    if not isinstance(pattern, str):
        return False
    try:
        re.compile(pattern.removeprefix("re:"))
    except re.error:
        return not pattern.startswith("re:")
    return True


def _config_findings(declared: Declaration, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the declaration itself."""
    yield from (
        Finding("config", _CONFIG, p.removeprefix("config.json: ")) for p in declared.problems
    )
    for pattern in _patterns(declared):
        if not _is_readable(pattern):
            yield Finding("config", _CONFIG, f"{pattern!r} is no name and no regular expression.")
    for group in declared.groups:
        try:
            format_of(group.scheme)
        except ValueError as error:
            yield Finding("config", _CONFIG, f"{group.name}: {error}.")
    whole = config.get("quantization_config") or {}
    formats = {group.scheme.format for group in declared.groups}
    expected = formats.pop() if len(formats) == 1 else "mixed-precision"
    if declared.groups and whole.get("format") not in (None, expected):
        message = f"its format is {whole['format']}, and that of its groups {expected}."
        yield Finding("config", _CONFIG, message)
    status = whole.get("quantization_status")
    if declared.groups and status not in (None, "compressed"):
        message = f"its quantization_status is {status!r}: loaders would not decompress."
        yield Finding("config", _CONFIG, message)


def _by_module(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of every module that is a linear, or is stored like a quantized one."""
    found: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        found[module][leaf] = tensor
    return {
        module: parts
        for module, parts in found.items()
        if parts.keys() & {*PARTS} or _is_linear(module, parts.get("weight"))
    }


def _is_linear(module: str, weight: StoredTensor | None) -> bool:
    if weight is None or len(weight.spec.shape) != 2 or is_norm(module):
        return False
    # An embedding of no quantized dtype is none; nor are convolutions and stored rotations.
    kind = protected_kind(module, {})
    plain = weight.spec.dtype in (*FLOATS, "F64")
    return not (plain and (is_embedding(module) or kind in ("online transforms", "convolutions")))


def _plain_shapes(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that are parameters as they stand."""
    return {
        name: spec.shape
        for name, spec in specs.items()
        if name.rpartition(".")[2] not in (*PARTS, *CACHE_SCALES)
        and protected_kind(name.rpartition(".")[0], {}) != "online transforms"
    }


def _group_findings(declared: Declaration, modules: Iterable[str]) -> Iterator[Finding]:
    used = {group.name for module in modules if (group := declared.group_of(module))}
    for group in declared.groups:
        if group.name not in used:
            yield Finding("config", _CONFIG, f"{group.name}: it matches no linear.")


def _fused_findings(declared: Declaration, modules: Iterable[str]) -> Iterator[Finding]:
    """Fused sets whose members are not quantized alike."""
    for fused in fused_sets(modules):
        groups = {module: declared.group_of(module) for module in fused.tensors}
        kinds = {replace(group.scheme, name="") if group else None for group in groups.values()}
        if len(kinds) > 1:
            how = ", ".join(
                f"{module.rpartition('.')[2]} {group.name if group else 'left alone'}"
                for module, group in groups.items()
            )
            message = f"its members are not quantized alike: {how}."
            yield Finding("scheme", fused.name, message)


def _cache_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Scales of a quantized key-value cache, which are there if and only if it is declared."""
    config = snapshot.config.get("quantization_config") or {}
    scheme = config.get("kv_cache_scheme")
    scheme = scheme if isinstance(scheme, Mapping) else {}
    found = [name for name in snapshot.tensors if name.endswith(CACHE_SCALES)]
    if not scheme:
        message = "it is extra: config.json has no kv_cache_scheme."
        yield from (Finding("scheme", name, message) for name in found)
    elif not scheme.get("dynamic"):
        for name in snapshot.tensors:
            parent, _, leaf = name.rpartition(".")[0].rpartition(".")
            if leaf in ("k_proj", "v_proj") and name.rpartition(".")[2] in (
                "weight",
                "weight_packed",
            ):
                scale = f"{parent}.{leaf[0]}_scale"
                if scale not in snapshot.tensors:
                    message = "it is missing, and kv_cache_scheme demands it."
                    yield Finding("scheme", scale, message)
