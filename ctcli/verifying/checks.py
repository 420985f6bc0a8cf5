"""What is looked at: a tensor, or the tensors of a module, perhaps beside what they should be.

Each is a node without outputs: its kernel sees a block of what is stored and of what is expected,
and measures what is wrong with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctcli.formats.sources.coded import Coded
from ctcli.formats.sources.decoding import Decoding
from ctcli.lazy.nodes import (
    COLUMNS,
    Computed,
    ContentError,
    Input,
    LazyTensor,
    Node,
    Stacked,
    Where,
    axis_of,
    starting_point,
)
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.ops.dtypes import DTYPES, WEIGHT_FLOATS
from ctcli.schemes import format_of
from ctcli.schemes.format import StoredPart
from ctcli.schemes.tiles import each_of, stored_inputs
from ctcli.verifying.linear import QuantizedModule
from ctcli.verifying.values import NOT_FINITE

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks, Exact
    from ctcli.ops.comparing import Deviation


@dataclass
class Seen:
    """What was seen in some blocks.

    Attributes:
        faults: how many times, by tensor and what is wrong with its values.
        errors: of each block: its first row and column, and how far it is from a source.
    """

    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[tuple[int, int, Deviation]] = field(default_factory=list)

    def fault(self, tensor: str, what: str, count: int) -> None:
        """Count values of a tensor that something is wrong with."""
        if count:
            self.faults[tensor, what] += count

    def error(self, where: Where, errors: Deviation) -> None:
        """Note how far a block is from a source."""
        place = (0, where.start) if where.axis == COLUMNS else (where.start, 0)
        self.errors.append((*place, errors))


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: the tensor, or the module.
        node: looks at it; what it measures on a block is one `Seen`.
        is_compared: whether it is held to the bytes of another tensor.
    """

    name: str
    node: Node
    is_compared: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Where its largest tensor lies: checks go through the files in order."""
        largest = max(self.node.reads, key=lambda tensor: tensor.spec.nbytes)
        return largest.file.name, largest.start


def plain_check(
    name: str,
    tensor: Stored,
    expected: Stored | Known | None = None,
    owner: str = "the source's",
) -> Check:
    """A tensor as it stands: finite, and perhaps equal to another of the same dtype and shape.

    Args:
        name: its name.
        tensor: where it lies.
        expected: what it has to equal, byte for byte.
        owner: whose that is.
    """
    tag = tensor.spec.dtype
    if not DTYPES[tag].torch_name:
        tag = "U8"
    shape = (tensor.spec.nbytes // (DTYPES[tag].nbytes), 1)
    inputs = {"found": Input(Stored(TensorSpec(tag, shape), tensor.file, tensor.start), shape)}
    if isinstance(expected, Stored):
        other = Stored(TensorSpec(tag, shape), expected.file, expected.start)
        inputs["expected"] = Input(other, shape)
    elif expected:
        inputs["expected"] = Input(Known(TensorSpec(tag, shape), expected.content), shape)
    node = Node(f"{name}/check/{owner}", name, shape, inputs, {}, CheckPlain(name, tag, owner))
    return Check(name, node, expected is not None)


def rounded_check(name: str, tensor: Stored, expected: Computed) -> Check:
    """A tensor that is not quantized, beside what a rewrite computes.

    Args:
        name: its name.
        tensor: where it lies.
        expected: what it should be; up to rounding, where that is known before it is rounded.
    """
    exact = expected.node.exact
    shape = expected.node.shape
    found = Input(tensor, shape)
    if exact is None:
        inputs = {"found": found, "expected": Input(expected, shape)}
        kernel: CheckComputed | CheckRounded = CheckComputed(name)
    else:
        inputs = {"found": found, "expected": Input(exact, shape)}
        kernel = CheckRounded(name, tensor.spec.dtype, exact.spec.dtype)
    node = Node(f"{name}/check", name, shape, inputs, {}, kernel, axis=axis_of(exact or expected))
    return Check(name, node)


def module_check(module: QuantizedModule, expected: Exact | None = None) -> Check:
    """A quantized weight, perhaps beside what it should be.

    Args:
        module: the linear.
        expected: its weight, not rounded.
    """
    axis = axis_of(expected) if expected else 0
    granule = format_of(module.scheme).granule(module.scheme)
    inputs = stored_inputs(module.tensors, module.outputs, granule, module.shape)
    tag = None
    if expected:
        tag = expected.spec.dtype
        inputs["expected"] = Input(expected, module.shape)
    node = Node(
        key=f"{module.name}/check",
        module=module.name,
        shape=module.shape,
        inputs=inputs,
        outputs={},
        kernel=CheckModule(module, tag),
        granule=granule,
        axis=axis,
    )
    return Check(module.name, node)


def coded_checks(coded: Coded, expected: LazyTensor | None = None) -> Iterator[Check]:
    """A weight that another tool quantized, perhaps beside what it should be.

    Args:
        coded: the weight; of several matrices, such as experts, each is looked at.
        expected: what it should be, in the same shape, and of as many matrices.
    """
    weight = coded.weight
    if isinstance(weight, Computed):
        yield _coded_check(coded.name, weight, starting_point(expected) if expected else None)
        return
    for number, part in enumerate(weight.parts):
        other: LazyTensor | None = None
        if isinstance(expected, Stacked):
            other = expected.parts[number]
        elif isinstance(expected, Stored):
            spec = TensorSpec(expected.spec.dtype, part.spec.shape)
            other = Stored(spec, expected.file, expected.start + number * spec.nbytes)
        exact = starting_point(other) if other else None
        yield _coded_check(f"{coded.name}[{number}]", part, exact)


def _coded_check(name: str, weight: Computed, expected: Exact | None) -> Check:
    """A matrix of codes, perhaps beside what it should be, not rounded."""
    node = weight.node
    inputs = dict(node.inputs)
    tag = expected.spec.dtype if expected else None
    if expected:
        inputs["expected"] = Input(expected, node.shape)
    assert isinstance(node.kernel, Decoding), "it decodes"
    kernel = CheckCoded(name, node.kernel, tag)
    key = f"{name}/check"
    made = Node(key, node.module, node.shape, inputs, {}, kernel, node.granule, node.axis)
    return Check(node.module, made)


@dataclass(frozen=True)
class CheckPlain:
    """Count values that are not finite, or not those expected."""

    name: str
    tag: str
    owner: str

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        from ctcli.ops.comparing import count_different, count_nonfinite

        seen, found = Seen(), _bits(blocks["found"])
        seen.fault(self.name, NOT_FINITE, count_nonfinite(found, self.tag))
        if "expected" in blocks:
            differing = count_different(found, _bits(blocks["expected"]))
            seen.fault(self.name, f"values differ from {self.owner}", differing)
        return {}, (seen,)


@dataclass(frozen=True)
class CheckComputed:
    """Count values that are not those which the recipe computes."""

    name: str

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        from ctcli.ops.comparing import count_different

        seen = Seen()
        differing = count_different(_bits(blocks["found"]), _bits(blocks["expected"]))
        seen.fault(self.name, "values differ from what the recipe computes", differing)
        return {}, (seen,)


@dataclass(frozen=True)
class CheckRounded:
    """Compare a tensor with what it is the rounding of."""

    name: str
    tag: str
    expected: str

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        from ctcli.ops.comparing import rounding_errors
        from ctcli.ops.edits import edited

        exact, _ = edited(blocks["expected"], self.expected, "F64")
        errors, nonfinite = rounding_errors(blocks["found"], self.tag, exact.view("f8"))
        seen = Seen()
        seen.fault(self.name, NOT_FINITE, nonfinite)
        seen.error(where, errors)
        return {}, (seen,)


@dataclass(frozen=True)
class CheckModule:
    """Look at the codes and scales of a module, and compare its weight with what it should be.

    Attributes:
        module: the linear.
        expected: safetensors tag of what its weight should be; None: that is not known.
    """

    module: QuantizedModule
    expected: str | None

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        seen, module = Seen(), self.module
        form = format_of(module.scheme)
        stored = {suffix: _bits(blocks[suffix]) for suffix in module.tensors}
        for suffix, tensor in module.tensors.items():
            runs = bool(each_of(module.outputs.get(suffix), (1, 1), module.shape)[where.axis])
            if where.start and not runs:
                continue  # it was looked at with the first block
            ends = where.stop == where.shape[where.axis] or not runs
            part = StoredPart(
                suffix, tensor.spec, stored[suffix], ends, runs and where.axis == COLUMNS
            )
            for what, count in form.faults(part, module.shape, module.scheme):
                seen.fault(f"{module.name}.{suffix}", what, count)
        if self.expected:
            scales = module.tensors["weight_scale"].spec.dtype
            dtype = scales if scales in WEIGHT_FLOATS else "BF16"
            scheme, expected = module.scheme, blocks["expected"]
            seen.error(where, form.compare(stored, expected, self.expected, scheme, dtype))
        return {}, (seen,)


@dataclass(frozen=True)
class CheckCoded:
    """Look at the scales and floats of a weight, and compare them with what they should be.

    Attributes:
        name: of the weight.
        decoding: from its tensors to floats.
        expected: safetensors tag of what they should be; None: that is not known.
    """

    name: str
    decoding: Decoding
    expected: str | None

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        import numpy as np

        from ctcli.ops.comparing import errors_of
        from ctcli.ops.decoding import decoded
        from ctcli.ops.edits import edited

        seen = Seen()
        try:
            codes = self.decoding.codes(blocks, where)
        except ContentError as error:
            seen.fault(self.name, f"blocks cannot be read: {error}", 1)
            return {}, (seen,)
        values, _ = decoded(codes, len(where.columns), "F32")
        seen.fault(self.name, NOT_FINITE, int((~np.isfinite(values)).sum()))
        seen.fault(self.name, "scales are negative", int((codes.scales < 0).sum()))
        if self.expected:
            wanted, _ = edited(blocks["expected"], self.expected, "F32")
            seen.error(where, errors_of(values, wanted.view("f4")))
        return {}, (seen,)


def _bits(block: Block) -> Block:
    """Floats as unsigned integers of their size, too."""
    return block.view(f"u{block.itemsize}")
