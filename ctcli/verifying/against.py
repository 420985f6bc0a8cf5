"""What the tensors of a checkpoint should be, as its source and its recipe have it.

The expected checkpoint is the source after the rewrites of the recipe, but for quantizing. Its
tensors are stored, to be equalled byte for byte, or computed, to be equalled up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.cache import CACHE_SCALES
from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.reading import dense, read_quantized
from ctcli.lazy.nodes import Computed, LazyTensor, Stacked, matrix_shape, starting_point
from ctcli.lazy.tensors import Stored
from ctcli.models.experts import layout_problem, packed_experts, split_experts
from ctcli.models.protected import is_embedding, is_head
from ctcli.models.turned_experts import are_turned, turned_linears, turned_problem
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.verifying.checks import Check, coded_checks, module_check, plain_check, rounded_check
from ctcli.verifying.findings import Finding
from ctcli.verifying.linear import QuantizedModule
from ctcli.verifying.structure import Snapshot

if TYPE_CHECKING:
    from ctcli.verifying.errors import LayerError

# A group's error is an outlier if it is so many times the largest that rounding leaves: a wrong
# scale or zero point makes it larger, and calibrated rounding, though not to the nearest, does not.
_OUTLIER = 2.0
_FROM_CALIBRATION = ("input_scale", "input_zero_point", "input_global_scale", *CACHE_SCALES)


@dataclass
class Pairing:
    """Every tensor of a checkpoint beside what it should be.

    Attributes:
        checks: what to look at: one for each module that is compared by value, and each tensor.
        findings: tensors that have no counterpart, or one of another dtype or shape.
        notes: tensors for which there is nothing to compare with.
    """

    checks: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differ(self, where: str, message: str) -> None:
        """Add a finding."""
        self.findings.append(Finding("difference", where, message))


def pair(
    snapshot: Snapshot,
    modules: Mapping[str, QuantizedModule],
    coded: Mapping[str, Coded],
    source: Checkpoint,
    presharded: Mapping[str, int],
) -> Pairing:
    """Find the counterpart of every tensor.

    Args:
        snapshot: the checkpoint.
        modules: its quantized modules.
        coded: its weights that other tools quantized.
        source: the expected checkpoint.
        presharded: see `read_quantized`.
    """
    pairing, stored = Pairing(), dict(source.tensors())
    source, requantized = _floats(source, presharded, pairing)
    wanted, split = dict(source.tensors()), _split(snapshot, source)
    for name, parts in split.items():
        del wanted[name]
        wanted |= parts
    left = {*wanted}
    for module in modules.values():
        own = {f"{module.name}.{suffix}": tensor for suffix, tensor in module.tensors.items()}
        weight = f"{module.name}.weight"
        left -= {weight, *own}
        if all(name in stored and stored[name].spec == t.spec for name, t in own.items()):
            pairing.checks.append(module_check(module))  # the source is quantized likewise
            _pair_each(own, stored, pairing)
            continue
        expected = wanted.get(weight) or _tied(weight, wanted)
        _pair_weight(module, expected, weight in requantized, pairing)
    for each in coded.values():
        left -= {each.name, *each.parts}
        expected = wanted.get(each.name)
        if expected is None:
            pairing.differ(each.name, "the source has no such weight.")
        elif expected.spec.shape != each.weight.spec.shape:
            shape = list(each.weight.spec.shape)
            pairing.differ(each.name, f"its shape is {shape}, and not the source's.")
            expected = None
        elif _matrices(expected) not in (1, _matrices(each.weight)):
            pairing.notes.append(f"{each.name}: the source packs its experts in another way")
            expected = None
        pairing.checks += coded_checks(each, expected)
    taken = {name for each in coded.values() for name in each.parts}
    own = {
        name: tensor
        for name, tensor in snapshot.tensors.items()
        if name not in taken and (not _is_part(name, modules) or name.endswith(".bias"))
    }
    left -= own.keys()
    _pair_each(own, wanted, pairing)
    for name in sorted(left) if snapshot.is_complete else ():
        pairing.differ(name, "it is missing: the source has it.")
    return pairing


def _matrices(tensor: LazyTensor) -> int:
    """How many matrices, one by one, a tensor is computed as."""
    return len(tensor.parts) if isinstance(tensor, Stacked) else 1


def _floats(
    source: Checkpoint, presharded: Mapping[str, int], pairing: Pairing
) -> tuple[Checkpoint, Collection[str]]:
    """The source with floats for weights, and the names of those that it stores quantized."""
    try:
        reading = read_quantized(source, presharded=presharded)
    except CtcliError as error:
        pairing.notes += [f"the source's {problem}" for problem in error.problems]
        return source, ()
    if reading is None:
        return source, ()
    names = {leaf.name for coded in reading.coded.values() for leaf in coded.leaves}
    return dense(source, reading), names


def _is_part(name: str, modules: Mapping[str, QuantizedModule]) -> bool:
    module, _, suffix = name.rpartition(".")
    return module in modules and suffix in modules[module].tensors


def _split(snapshot: Snapshot, source: Checkpoint) -> dict[str, Mapping[str, LazyTensor]]:
    """What each tensor of packed experts became that the checkpoint does not have as it was."""
    found: dict[str, Mapping[str, LazyTensor]] = {}
    for name, tensor in source.tensors():
        packed = packed_experts(name, tensor.spec)
        if packed is None or name in snapshot.tensors:
            continue
        if isinstance(tensor, Stacked) and tensor.linears:
            found[name] = tensor.linears
        elif are_turned(source.config) and isinstance(tensor, Stored | Stacked):
            if not turned_problem(packed, tensor.spec, source.config):
                found[name] = turned_linears(packed, tensor)
        elif isinstance(tensor, Stored) and not layout_problem(packed, tensor.spec, source.config):
            found[name] = split_experts(packed, tensor)
    return found


def _tied(weight: str, wanted: Mapping[str, LazyTensor]) -> LazyTensor | None:
    """The embedding, for a head that got a weight of its own."""
    if not is_head(weight.removesuffix(".weight")):
        return None
    embeddings = (
        tensor for name, tensor in wanted.items() if is_embedding(name[: -len(".weight")])
    )
    return next(embeddings, None)


def _pair_weight(
    module: QuantizedModule, wanted: LazyTensor | None, requantized: bool, pairing: Pairing
) -> None:
    """A quantized weight with what it should be.

    Args:
        module: the linear.
        wanted: its weight in the source.
        requantized: whether the source stores that quantized, with scales of any dtype.
        pairing: gets the check, and what differs already.
    """
    exact = starting_point(wanted) if wanted and wanted.spec.dtype in WEIGHT_FLOATS else None
    if wanted is None or exact is None:
        pairing.checks.append(module_check(module))
        message = "the source has no such weight." if wanted is None else "it is quantized twice."
        pairing.differ(f"{module.name}.weight", message)
        return
    shape = matrix_shape(exact.spec.shape)
    if shape != module.shape:
        pairing.checks.append(module_check(module))
        message = f"its shape is {list(module.shape)}, and {list(shape)} in the source."
        pairing.differ(f"{module.name}.weight", message)
        return
    scale = module.outputs["weight_scale"].spec.dtype
    if scale in WEIGHT_FLOATS and scale != wanted.spec.dtype and not requantized:
        message = f"it is {scale}, and the source's weight {wanted.spec.dtype}."
        pairing.differ(f"{module.name}.weight_scale", message)
    pairing.checks.append(module_check(module, exact))


def _pair_each(
    own: Mapping[str, Stored],
    wanted: Mapping[str, LazyTensor],
    pairing: Pairing,
) -> None:
    """Tensors with those of the same name."""
    for name, tensor in own.items():
        expected = wanted.get(name) or _tied(name, wanted)
        check = plain_check(name, tensor)
        if expected is None and name.endswith(_FROM_CALIBRATION):
            pairing.notes.append(f"{name}: it comes from calibration, not from the source")
        elif expected is None:
            pairing.differ(name, "it is extra: the source has no such tensor.")
        elif expected.spec != tensor.spec:
            found, should = tensor.spec, expected.spec
            message = f"it is {found.dtype} {list(found.shape)}, and should be"
            pairing.differ(name, f"{message} {should.dtype} {list(should.shape)}.")
        elif isinstance(expected, Computed):
            check = rounded_check(name, tensor, expected)
        elif isinstance(expected, Stacked):
            pairing.checks += _stacked_checks(name, tensor, expected)
            continue
        else:
            check = plain_check(name, tensor, expected)
        pairing.checks.append(check)


def _stacked_checks(name: str, tensor: Stored, expected: Stacked) -> Iterator[Check]:
    """The parts of a tensor, such as experts, beside what each should be."""
    for number, part in enumerate(expected.parts):
        start = tensor.start + number * part.spec.nbytes
        yield rounded_check(f"{name}[{number}]", Stored(part.spec, tensor.file, start), part)


def error_findings(errors: Mapping[str, LayerError], max_error: float | None) -> list[Finding]:
    """The weights whose errors are too large.

    Args:
        errors: by module.
        max_error: the largest relative root mean square error to let pass; None: any.
    """
    findings = []
    for name, error in errors.items():
        if max_error is not None and not error.relative <= max_error:
            message = f"its relative error is {error.relative:.5f}, above {max_error:g}."
            findings.append(Finding("error", name, message))
        if not error.excess <= _OUTLIER:
            message = (
                f"the group at row {error.row}, column {error.column} has {error.excess:.3g} times "
                "the error that rounding leaves at most."
            )
            findings.append(Finding("error", name, message))
    return findings
