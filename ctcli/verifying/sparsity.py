"""Whether weights that the recipe says were pruned have as many zeros as it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctcli.checkpoint.value import RECIPE_NAME
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import Input, Node, Where
from ctcli.lazy.tensors import Stored
from ctcli.models.protected import REASONS
from ctcli.ops.dtypes import WEIGHT_FLOATS
from ctcli.patterns import matching
from ctcli.rewrites.sparsifying.options import SparsifyOptions, pruning_of
from ctcli.rewrites.sparsifying.pruning import Sparsity
from ctcli.schemes import format_of
from ctcli.schemes.tiles import stored_inputs
from ctcli.storage.recipe import read_recipe
from ctcli.verifying.checks import Check, Seen
from ctcli.verifying.linear import QuantizedModule
from ctcli.verifying.structure import Snapshot

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks


def _options_of(recipe: Path) -> SparsifyOptions | None:
    """How a checkpoint says it was pruned; None: not, or it has no recipe that can be read."""
    try:
        read = read_recipe(recipe)
    except CtcliError:  # it is said elsewhere
        return None
    return pruning_of((*read.history, *read.steps))


def pattern_checks(snapshot: Snapshot, quantized: Mapping[str, QuantizedModule]) -> Iterator[Check]:
    """A check of each module that was pruned."""
    options = _options_of(snapshot.directory / RECIPE_NAME)
    if options is None:
        return
    names = {*quantized, *(m.name for m in snapshot.modules.values() if m.weight)}
    ignored, named = matching(options.ignore, names), matching(options.targets, names)
    for module in snapshot.modules.values():
        protected = options.default_ignore and module.kind in REASONS and module.name not in named
        if protected or module.name in ignored:
            continue
        weight, found = module.weight, quantized.get(module.name)
        if found:
            yield _quantized_check(found, options.sparsity)
        elif weight and len(weight.spec.shape) == 2 and weight.spec.dtype in WEIGHT_FLOATS:
            yield _plain_check(module.weight_name, weight, options.sparsity)


def _plain_check(name: str, tensor: Stored, sparsity: Sparsity) -> Check:
    rows, columns = tensor.spec.shape
    inputs = {"weight": Input(tensor, (rows, columns))}
    kernel = CheckPlainPattern(name, tensor.spec.dtype, sparsity)
    return Check(name, Node(f"{name}/sparsity", name, (rows, columns), inputs, {}, kernel))


def _quantized_check(module: QuantizedModule, sparsity: Sparsity) -> Check:
    granule = format_of(module.scheme).granule(module.scheme)
    node = Node(
        key=f"{module.name}/sparsity",
        module=module.name,
        shape=module.shape,
        inputs=stored_inputs(module.tensors, module.outputs, granule, module.shape),
        outputs={},
        kernel=CheckPattern(module, sparsity),
        granule=granule,
    )
    return Check(module.name, node)


def _fault(seen: Seen, name: str, sparsity: Sparsity, count: int) -> None:
    units = "groups of four" if sparsity.group else "rows"
    seen.fault(name, f"{units} have fewer zeros than sparsify left ({sparsity.words})", count)


@dataclass(frozen=True)
class CheckPlainPattern:
    """Count groups with too few zeros in a weight of floats."""

    name: str
    tag: str
    sparsity: Sparsity

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        import numpy as np

        from ctcli.ops.bits import to_floats

        seen, block = Seen(), blocks["weight"]
        values = to_floats(block.view(f"u{block.itemsize}"), self.tag, np.float32)
        _fault(seen, self.name, self.sparsity, self.sparsity.excess(values))
        return {}, (seen,)


@dataclass(frozen=True)
class CheckPattern:
    """The same of a quantized weight."""

    module: QuantizedModule
    sparsity: Sparsity

    def __call__(self, blocks: Blocks, where: Where) -> tuple[Blocks, Sequence[Seen]]:
        """See `Kernel`."""
        from ctcli.ops.decoding import decoded

        seen, scheme = Seen(), self.module.scheme
        stored = {name: b.view(f"u{b.itemsize}") for name, b in blocks.items()}
        scales = self.module.tensors["weight_scale"].spec.dtype
        dtype = scales if scales in WEIGHT_FLOATS else "BF16"
        shape = len(where.rows), len(where.columns)
        codes = format_of(scheme).codes(stored, shape, scheme, dtype)
        values, _ = decoded(codes, shape[1], "F32")
        _fault(seen, self.module.name, self.sparsity, self.sparsity.excess(values))
        return {}, (seen,)
