"""Which commands a checkpoint admits: each is asked itself, as far as it looks before it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.cache import cache_problem
from ctcli.formats.sources.reading import Reading, dense
from ctcli.models.architecture import Architecture
from ctcli.models.llama import naming_of
from ctcli.rewrites.equalizing.equalize import equalizable
from ctcli.rewrites.equalizing.parts import PARTS
from ctcli.rewrites.exporting.export_bin import export_bin
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.quantizing.config import RELEASE_HINT, release_problem
from ctcli.rewrites.sources.convert import refusal_hint
from ctcli.rewrites.sources.options import ConvertOptions
from ctcli.rewrites.surgery.matrices import Matrices
from ctcli.rewrites.surgery.surgery import architecture_of, editable

_NAMES = (
    *("fuse-norms", "rotate R1", "rotate R2", "rotate R3", "rotate R4", "equalize", "export-bin"),
    *("dequantize", "convert"),
)
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
        note: what is to be known if it can.
    """

    name: str
    reasons: tuple[str, ...] = ()
    hint: str = ""
    note: str = ""


def abilities(checkpoint: Checkpoint, reading: Reading | CtcliError | None) -> list[Ability]:
    """What fuse-norms, rotate (R1 to R4), equalize, export-bin, and for quantized sources
    dequantize and convert would say.

    Args:
        checkpoint: the checkpoint.
        reading: its quantized weights, or why they cannot be read.
    """
    if isinstance(reading, CtcliError):
        return [Ability(name, reading.problems, reading.hint) for name in _NAMES]
    if reading is None:
        return _dense_abilities(checkpoint)
    return [*_dense_abilities(dense(checkpoint, reading)), *_source_abilities(reading)]


def _source_abilities(reading: Reading) -> Iterator[Ability]:
    is_exact = {False: "each weight is rounded once", True: "exact"}
    yield Ability("dequantize", note=is_exact[reading.is_exact])
    leaves = [leaf for coded in reading.coded.values() for leaf in coded.leaves]
    refused = [leaf for leaf in leaves if not leaf.scheme]
    refusals = {leaf.method: leaf.refusal for leaf in refused}
    reasons = [f"{method}: {refusal}." for method, refusal in refusals.items()]
    hint, note = refusal_hint(refused), "exact"
    formats = {leaf.scheme.format for leaf in leaves if leaf.scheme}
    if not reasons and (problem := release_problem(formats, ConvertOptions().ct_version)):
        reasons, hint = [problem], RELEASE_HINT
    if reading.cache and (problem := cache_problem(reading.said)):
        reasons.append(f"{next(iter(reading.cache))}: {problem}.")
    if any(leaf.has_reciprocal for leaf in leaves):
        note = "global scales are reciprocals, rounded to float32"
    yield Ability("convert", tuple(reasons), hint, note)


def _dense_abilities(checkpoint: Checkpoint) -> list[Ability]:
    checks: dict[str, Callable[[Architecture], object]] = {
        "fuse-norms": lambda architecture: architecture.require("fuse-norms"),
        "rotate R1": _check_stream,
        "rotate R2": _check_values,
        "rotate R3": _check_keys,
        "rotate R4": lambda architecture: _check_inner(checkpoint, architecture),
    }
    export = _asked("export-bin", lambda: _check_export(checkpoint))
    try:
        editing = editable(checkpoint)
        architecture = architecture_of(editing, None)
    except CtcliError as error:
        names = (*checks, "equalize")
        return [*(Ability(name, error.problems, error.hint) for name in names), export]
    asked = (_asked(name, partial(check, architecture)) for name, check in checks.items())
    return [*asked, _equalize(editing, architecture), export]


def _equalize(checkpoint: Checkpoint, architecture: Architecture) -> Ability:
    try:
        found = equalizable(checkpoint, architecture)
    except CtcliError as error:
        return Ability("equalize", error.problems, error.hint)
    parts = [part for part in PARTS if found.count(part)]
    reasons = [f"not {part}: {reason}" for part, reason in found.reasons.items()]
    return Ability("equalize", note="; ".join([", ".join(parts), *reasons]))


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
