"""Which commands a checkpoint admits: each is asked itself, as far as it looks before it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture
from ctcli.models.llama import naming_of
from ctcli.rewrites.exporting.export_bin import export_bin
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.surgery.matrices import Matrices
from ctcli.rewrites.surgery.surgery import architecture_of, editable

# Up to this odd part every size has a rotation, and a multiple of 4 a Hadamard matrix if four
# times its odd part is at most _HADAMARD. Larger ones are made, which takes torch.
_ODD_PART = 1024
_HADAMARD = 256


@dataclass(frozen=True)
class Ability:
    """Whether a command, or a rotation, can run with its default options.

    Attributes:
        name: `fuse-norms`, `rotate R1`, ..., `export-bin`.
        reasons: why not; none if it can.
        hint: what to do next if it cannot.
    """

    name: str
    reasons: tuple[str, ...] = ()
    hint: str = ""


def abilities(checkpoint: Checkpoint) -> list[Ability]:
    """What fuse-norms, rotate (R1 to R4) and export-bin would say."""
    checks: dict[str, Callable[[Architecture], object]] = {
        "fuse-norms": lambda architecture: architecture.require("fuse-norms"),
        "rotate R1": _check_stream,
        "rotate R2": _check_values,
        "rotate R3": _check_keys,
        "rotate R4": lambda architecture: _check_inner(checkpoint, architecture),
    }
    export = _asked("export-bin", lambda: _check_export(checkpoint))
    try:
        architecture = architecture_of(editable(checkpoint), None)
    except CtcliError as error:
        return [*(Ability(name, error.problems, error.hint) for name in checks), export]
    asked = (_asked(name, partial(check, architecture)) for name, check in checks.items())
    return [*asked, export]


def _asked(name: str, check: Callable[[], object]) -> Ability:
    try:
        check()
    except CtcliError as error:
        return Ability(name, error.problems, error.hint)
    return Ability(name)


def _check_stream(architecture: Architecture) -> None:
    architecture.require("fuse-norms", "R1")
    if _odd_part(architecture.hidden_size) > _ODD_PART:
        _matrices(architecture).stream()


def _check_values(architecture: Architecture) -> None:
    architecture.require("R2")
    for attention in architecture.attentions:
        if _odd_part(attention.v.size) > _ODD_PART:
            _matrices(architecture).values(attention)


def _check_keys(architecture: Architecture) -> None:
    architecture.require("R3")
    for size in dict.fromkeys(attention.q.size for attention in architecture.attentions):
        if not _has_hadamard(size):
            _matrices(architecture).keys(size)


def _check_inner(checkpoint: Checkpoint, architecture: Architecture) -> None:
    architecture.require("R4")
    outputs = (checkpoint.modules[mlp.output] for mlp in architecture.mlps)
    for size in dict.fromkeys(output.shape[1] for output in outputs):
        if not _has_hadamard(size):
            _matrices(architecture).inner(size)


def _check_export(checkpoint: Checkpoint) -> None:
    export_bin(_without_equal_head(checkpoint), ExportOptions())


def _without_equal_head(checkpoint: Checkpoint) -> Checkpoint:
    """The same without a head of the embedding's dtype and shape.

    export-bin compares their bytes; whether they are equal decides nothing but the file's size.
    """
    specs = checkpoint.specs
    naming = naming_of(specs)
    head = naming.once["classifier"] if naming else ""
    if naming is None or specs.get(head) != specs[naming.once["token_embedding"]]:
        return checkpoint
    shards = tuple(
        replace(shard, tensors={n: t for n, t in shard.tensors.items() if n != head})
        for shard in checkpoint.shards
    )
    return replace(checkpoint, shards=shards)


def _matrices(architecture: Architecture) -> Matrices:
    return Matrices(architecture, "hadamard", None, False, None, None)


def _has_hadamard(size: int) -> bool:
    """Whether a size certainly has a Hadamard matrix."""
    odd = _odd_part(size)
    return odd == 1 or (size % 4 == 0 and 4 * odd <= _HADAMARD)


def _odd_part(size: int) -> int:
    return size // (size & -size)
