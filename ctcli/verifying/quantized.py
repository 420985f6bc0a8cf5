"""Which linears are quantized, how, and whether each has exactly the tensors that takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctcli.errors import CtcliError
from ctcli.formats.declared import QUANT_METHOD, Declaration, read_declaration
from ctcli.formats.quantized import quantized_format
from ctcli.formats.sources.cache import CACHE_SCALES
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import read_modules
from ctcli.lazy.tensors import Stored
from ctcli.models.config import table
from ctcli.models.fused import fused_sets
from ctcli.models.modules import Module
from ctcli.ops.dtypes import FLOATS
from ctcli.schemes import format_of
from ctcli.verifying.findings import Finding
from ctcli.verifying.linear import PARTS, LinearCheck, QuantizedModule
from ctcli.verifying.structure import Snapshot

_CONFIG = "config.json"


@dataclass(frozen=True)
class QuantizedModules:
    """What is quantized in a checkpoint.

    Attributes:
        declared: what config.json says; None: nothing.
        modules: the sound modules of compressed-tensors, by name.
        coded: the weights that other tools quantized, by the dense tensor's name.
        shapes: of all parameters before quantization, by name, quantized or not; None: they cannot
            be told.
    """

    declared: Declaration | None
    modules: Mapping[str, QuantizedModule]
    coded: Mapping[str, Coded]
    shapes: Mapping[str, tuple[int, ...]] | None


def quantization_of(
    snapshot: Snapshot, presharded: Mapping[str, int]
) -> tuple[QuantizedModules, list[Finding], list[str]]:
    """Compare quantized tensors with what config.json declares.

    Args:
        snapshot: the checkpoint.
        presharded: see `read_modules`.

    Returns:
        What is quantized, every difference, and what could not be checked.
    """
    declared = read_declaration(snapshot.config)
    if declared is None:
        findings, tensors = [], snapshot.tensors.items()
        specs = ((name, tensor.spec) for name, tensor in tensors)
        if marked := quantized_format(specs, snapshot.config):
            message = f"it has no quantization_config, but there are tensors of {marked}."
            findings.append(Finding("config", _CONFIG, message))
        return QuantizedModules(None, {}, {}, _plain_shapes(snapshot)), findings, []
    findings = [*_config_findings(declared, snapshot.config)]
    if declared.method != QUANT_METHOD:
        coded, unreadable = _coded_weights(snapshot, presharded)
        taken = {name for each in coded.values() for name in each.parts}
        plain = {name: s for name, s in _plain_shapes(snapshot).items() if name not in taken}
        dense = {name: each.weight.spec.shape for name, each in coded.items()}
        shapes = {**plain, **dense} if coded else None
        return QuantizedModules(declared, {}, coded, shapes), [*findings, *unreadable], []
    if declared.has_unreadable_patterns:
        note = "quantized tensors, since config.json has patterns that cannot be read"
        return QuantizedModules(declared, {}, {}, None), findings, [note]
    linears = [module for module in snapshot.modules.values() if _is_linear(module)]
    names = [module.name for module in linears]
    modules, shapes = {}, _plain_shapes(snapshot)
    for module in linears:
        found = LinearCheck(module.name, module.parts, declared.group_of(module.name))
        findings += found.findings
        if found.shape:
            shapes[f"{module.name}.weight"] = found.shape
        if found.quantized:
            modules[module.name] = found.quantized
    findings += [*_group_findings(declared, names), *_fused_findings(declared, names)]
    findings += _cache_findings(snapshot)
    is_known = all(f"{name}.weight" in shapes for name in names)
    return QuantizedModules(declared, modules, {}, shapes if is_known else None), findings, []


def _coded_weights(
    snapshot: Snapshot, presharded: Mapping[str, int]
) -> tuple[Mapping[str, Coded], list[Finding]]:
    """The weights that other tools quantized, or why they cannot be read."""
    try:
        origin, config = str(snapshot.directory), snapshot.config
        reading = read_modules(origin, snapshot.modules, config, presharded=presharded)
    except CtcliError as error:
        split = (problem.partition(": ") for problem in error.problems)
        return {}, [Finding("scheme", where, message) for where, _, message in split]
    return (reading.coded if reading else {}), []


def _config_findings(declared: Declaration, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the declaration itself."""
    yield from (
        Finding("config", _CONFIG, p.removeprefix("config.json: ")) for p in declared.problems
    )
    for group in declared.groups:
        try:
            format_of(group.scheme)
        except ValueError as error:
            yield Finding("config", _CONFIG, f"{group.name}: {error}.")
    whole = table(config.get("quantization_config"))
    formats = {group.scheme.format for group in declared.groups}
    expected = formats.pop() if len(formats) == 1 else "mixed-precision"
    if declared.groups and whole.get("format") not in (None, expected):
        message = f"its format is {whole['format']}, and that of its groups {expected}."
        yield Finding("config", _CONFIG, message)
    status = whole.get("quantization_status")
    if declared.groups and status not in (None, "compressed"):
        message = f"its quantization_status is {status!r}: loaders would not decompress."
        yield Finding("config", _CONFIG, message)


def _is_linear(module: Module[Stored]) -> bool:
    """Whether a module is a linear, or is stored like a quantized one."""
    if module.parts.keys() & {*PARTS}:
        return True
    if module.weight is None or len(module.shape) != 2 or module.kind == "norm":
        return False
    # An embedding of no quantized dtype is none; nor are convolutions and stored rotations.
    plain = module.weight.spec.dtype in FLOATS
    return not (plain and module.kind in ("embedding", "rotation", "convolution"))


def _plain_shapes(snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that are parameters as they stand."""
    return {
        module.tensor(part): tensor.spec.shape
        for module in snapshot.modules.values()
        if module.kind != "rotation"
        for part, tensor in module.parts.items()
        if part not in (*PARTS, *CACHE_SCALES)
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
    scheme = table(table(snapshot.config.get("quantization_config")).get("kv_cache_scheme"))
    found = [name for name in snapshot.tensors if name.endswith(CACHE_SCALES)]
    if not scheme:
        message = "it is extra: config.json has no kv_cache_scheme."
        yield from (Finding("scheme", name, message) for name in found)
    elif not scheme.get("dynamic"):
        for module in snapshot.modules.values():
            stored = module.parts.keys() & {"weight", "weight_packed"}
            if stored and module.leaf in ("k_proj", "v_proj"):
                parent = module.name.rpartition(".")[0]
                scale = f"{parent}.{module.leaf[0]}_scale"
                if scale not in snapshot.tensors:
                    message = "it is missing, and kv_cache_scheme demands it."
                    yield Finding("scheme", scale, message)
