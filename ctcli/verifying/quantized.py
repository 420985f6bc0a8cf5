"""Which linears are quantized, how, and whether each has exactly the tensors that takes."""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ctcli.models.fused import fused_sets
from ctcli.models.protected import is_embedding, is_norm, protected_kind
from ctcli.models.quantized import quantized_format
from ctcli.schemes import family_of
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.declared import QUANT_METHOD, Declaration, Group, read_declaration, words
from ctcli.schemes.family import Numerics
from ctcli.tensors import Output, StoredTensor, TensorSpec
from ctcli.verifying.findings import Finding
from ctcli.verifying.structure import Snapshot

FLOATS = ("BF16", "F16", "F32")
_CONFIG = "config.json"
CACHE_SCALES = ("k_scale", "v_scale", "q_scale")
# Last components of the tensors that stand for a weight, or come with one.
_PARTS = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale"),
    *("input_scale", "input_zero_point", "input_global_scale"),
)
_STORED_DTYPES = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class QuantizedModule:
    """A linear whose tensors are those of its scheme.

    Attributes:
        name: the module's.
        scheme: how it is quantized.
        shape: [rows, columns] of its weight.
        outputs: what stands for the weight, by suffix.
        tensors: where that lies, with scales of static inputs.
    """

    name: str
    scheme: Scheme
    shape: tuple[int, int]
    outputs: Mapping[str, Output]
    tensors: Mapping[str, StoredTensor]


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
        found = _Module(module, tensors, declared.group_of(module))
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
            family_of(group.scheme)
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
        if parts.keys() & {*_PARTS} or _is_linear(module, parts.get("weight"))
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
        if name.rpartition(".")[2] not in (*_PARTS, *CACHE_SCALES)
        and protected_kind(name.rpartition(".")[0], {}) != "online transforms"
    }


class _Module:
    """One linear against the group that config.json puts it in.

    Attributes:
        findings: every difference.
        shape: of its weight, before it was packed, if it can be told.
        quantized: it, if it is quantized and nothing is wrong with its tensors.
    """

    def __init__(self, name: str, tensors: Mapping[str, StoredTensor], group: Group | None) -> None:
        self.findings: list[Finding] = []
        self.shape: tuple[int, int] | None = None
        self.quantized: QuantizedModule | None = None
        self._name, self._tensors = name, tensors
        if group is None:
            self._check_left_alone()
        elif not (tensors.keys() & {*_PARTS}) and tensors["weight"].spec.dtype in FLOATS:
            message = (
                f"it is {tensors['weight'].spec.dtype}, but config.json quantizes its module with "
                f"{group.name} and does not list it in ignore."
            )
            self._add("weight", message)
        else:
            self._check(group.scheme)

    def _add(self, suffix: str, message: str) -> None:
        name = f"{self._name}.{suffix}" if suffix else self._name
        self.findings.append(Finding("scheme", name, message))

    def _check_left_alone(self) -> None:
        weight = self._tensors.get("weight")
        marks = sorted(self._tensors.keys() & {*_PARTS})
        if marks or (weight and weight.spec.dtype in _STORED_DTYPES):
            what = f"it has {', '.join(marks)}" if marks else "its weight is"
            dtype = f" {weight.spec.dtype}" if weight and not marks else ""
            message = f"{what}{dtype}, but config.json leaves the module unquantized."
            self._add("", message)

    def _check(self, scheme: Scheme) -> None:
        try:
            family = family_of(scheme)
        except ValueError:
            return  # said once, of config.json
        self.shape = shape = self._shape_of(scheme)
        if shape is None:
            self._add("", f"it has no weight that {words(scheme.weights)} could stand for.")
            return
        group = scheme.weights.group_size
        if group and shape[1] % group:
            self._add("", f"its {shape[1]} columns are no multiple of the group size {group}.")
            return
        numerics = Numerics(scheme, self._scale_dtype(), "float32", "minmax")
        outputs = family.outputs(numerics, TensorSpec(numerics.dtype, shape))
        self._check_tensors(scheme, {name: output.spec for name, output in outputs.items()})
        if not self.findings:
            kept = {name: self._tensors[name] for name in (*outputs, *self._static(scheme))}
            self.quantized = QuantizedModule(self._name, scheme, shape, outputs, kept)

    def _scale_dtype(self) -> str:
        """The dtype of scales that have the weight's: any float will do."""
        scale = self._tensors.get("weight_scale")
        return scale.spec.dtype if scale and scale.spec.dtype in FLOATS else "BF16"

    def _static(self, scheme: Scheme) -> dict[str, TensorSpec | None]:
        """What scales of static inputs there have to be; None: of any floating dtype."""
        suffix, inputs = scheme.needs_input_scale, scheme.input_activations
        if suffix is None or inputs is None:
            return {}
        found: dict[str, TensorSpec | None] = {suffix: None}
        if suffix == "input_global_scale":
            found[suffix] = TensorSpec("F32", (1,))
        elif not inputs.symmetric:
            found["input_zero_point"] = TensorSpec("I8", (1,))
        return found

    def _check_tensors(self, scheme: Scheme, demand: Mapping[str, TensorSpec]) -> None:
        what = f"{scheme.format} of {words(scheme.weights)}"
        static = self._static(scheme)
        for suffix in (*demand, *static):
            if suffix not in self._tensors:
                self._add(suffix, f"it is missing, and {what} demands it.")
        for suffix, expected in {**demand, **{k: s for k, s in static.items() if s}}.items():
            if suffix not in self._tensors:
                continue
            spec = self._tensors[suffix].spec
            if spec.dtype != expected.dtype:
                self._add(suffix, f"it is {spec.dtype}, and {what} demands {expected.dtype}.")
            if spec.shape != expected.shape:
                shapes = f"{list(spec.shape)}, and {what} demands {list(expected.shape)}"
                self._add(suffix, f"its shape is {shapes}.")
        scale = self._tensors.get("input_scale") if "input_scale" in static else None
        if scale and scale.spec.dtype not in FLOATS:
            self._add("input_scale", f"it is {scale.spec.dtype}, which is no scale.")
        known = {*demand, *static, "bias"}
        for suffix in sorted(self._tensors.keys() - known):
            self._add(suffix, f"it is extra: {what} has no such tensor.")

    def _shape_of(self, scheme: Scheme) -> tuple[int, int] | None:
        """[rows, columns] of the weight before it was packed."""
        for suffix in ("weight_packed", "weight"):
            tensor = self._tensors.get(suffix)
            if tensor and len(tensor.spec.shape) == 2:
                rows, columns = tensor.spec.shape
                if suffix == "weight":
                    return rows, columns
                if "4-pack" in scheme.format or tensor.spec.dtype == "U8":
                    return rows, 2 * columns
                return rows, self._unpacked_columns(scheme, rows, columns)
        return None

    def _unpacked_columns(self, scheme: Scheme, rows: int, words_: int) -> int:
        """Columns of a packed weight: those of its scales, else what `weight_shape` says."""
        bits, group = scheme.weights.num_bits, scheme.weights.group_size
        scale, stored = (self._tensors.get(name) for name in ("weight_scale", "weight_shape"))
        found, is_grouped = words_ * 32 // bits, False
        if group and scale and len(scale.spec.shape) == 2:
            found, is_grouped = scale.spec.shape[1] * group, True
        if stored is None or stored.spec != TensorSpec("I64", (2,)):
            return found
        said = struct.unpack("<2q", stored.file.read(stored.start, 16))
        fits = said[1] == found if is_grouped else -(-said[1] * bits // 32) == words_
        if said[0] == rows and fits:
            return int(said[1])
        self._add("weight_shape", f"it says {list(said)}, and the weight is {[rows, found]}.")
        return found


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
