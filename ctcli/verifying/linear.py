"""One linear: has it exactly the tensors that its scheme demands?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ctcli.formats.groups import Group
from ctcli.lazy.nodes import Output
from ctcli.lazy.tensors import Stored, TensorSpec
from ctcli.ops.dtypes import CODES, WEIGHT_FLOATS
from ctcli.schemes import format_of, words
from ctcli.schemes.arguments import Scheme
from ctcli.schemes.family import Numerics
from ctcli.schemes.format import NumericFormat, ShapeError
from ctcli.verifying.findings import Finding

# Last components of the tensors that stand for a weight, or come with one.
PARTS = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale"),
    *("input_scale", "input_zero_point", "input_global_scale"),
)


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
    tensors: Mapping[str, Stored]


class LinearCheck:
    """One linear against the group that config.json puts it in.

    Attributes:
        findings: every difference.
        shape: of its weight, before it was packed, if it can be told.
        quantized: it, if it is quantized and nothing is wrong with its tensors.
    """

    def __init__(self, name: str, tensors: Mapping[str, Stored], group: Group | None) -> None:
        self.findings: list[Finding] = []
        self.shape: tuple[int, int] | None = None
        self.quantized: QuantizedModule | None = None
        self._name, self._tensors = name, tensors
        if group is None:
            self._check_left_alone()
        elif not (tensors.keys() & {*PARTS}) and tensors["weight"].spec.dtype in WEIGHT_FLOATS:
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
        marks = sorted(self._tensors.keys() & {*PARTS})
        if marks or (weight and weight.spec.dtype in (*CODES, "I32")):
            what = f"it has {', '.join(marks)}" if marks else "its weight is"
            dtype = f" {weight.spec.dtype}" if weight and not marks else ""
            message = f"{what}{dtype}, but config.json leaves the module unquantized."
            self._add("", message)

    def _check(self, scheme: Scheme) -> None:
        try:
            form = format_of(scheme)
        except ValueError:
            return  # said once, of config.json
        self.shape = shape = self._shape_of(form, scheme)
        if shape is None:
            self._add("", f"it has no weight that {words(scheme.weights)} could stand for.")
            return
        group = scheme.weights.group_size
        if group and shape[1] % group:
            self._add("", f"its {shape[1]} columns are no multiple of the group size {group}.")
            return
        numerics = Numerics(scheme, self._scale_dtype(), "float32", "minmax")
        outputs = form.outputs(numerics, TensorSpec(numerics.dtype, shape))
        self._check_tensors(scheme, {name: output.spec for name, output in outputs.items()})
        if not self.findings:
            kept = {name: self._tensors[name] for name in (*outputs, *self._static(scheme))}
            self.quantized = QuantizedModule(self._name, scheme, shape, outputs, kept)

    def _scale_dtype(self) -> str:
        """The dtype of scales that have the weight's: any float will do."""
        scale = self._tensors.get("weight_scale")
        return scale.spec.dtype if scale and scale.spec.dtype in WEIGHT_FLOATS else "BF16"

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
        if scale and scale.spec.dtype not in WEIGHT_FLOATS:
            self._add("input_scale", f"it is {scale.spec.dtype}, which is no scale.")
        known = {*demand, *static, "bias"}
        for suffix in sorted(self._tensors.keys() - known):
            self._add(suffix, f"it is extra: {what} has no such tensor.")

    def _shape_of(self, form: NumericFormat, scheme: Scheme) -> tuple[int, int] | None:
        """[rows, columns] of the weight before it was packed."""
        specs = {suffix: tensor.spec for suffix, tensor in self._tensors.items()}
        try:
            return form.shape_of(specs, scheme, self._content)
        except ShapeError as error:
            self._add("weight_shape", str(error))
            return error.shape

    def _content(self, suffix: str) -> bytes:
        tensor = self._tensors[suffix]
        return tensor.file.read(tensor.start, tensor.spec.nbytes)
