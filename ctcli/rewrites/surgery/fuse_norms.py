"""`ctcli fuse-norms`: gains of norms go into the linears that read them (arXiv:2401.15024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint
from ctcli.lazy.nodes import starting_point
from ctcli.models.architecture import NormRole
from ctcli.rewrites.surgery.edits import Arithmetic, Gain
from ctcli.rewrites.surgery.kernels import Map, RowMap
from ctcli.rewrites.surgery.options import FuseOptions
from ctcli.rewrites.surgery.surgery import (
    Surgery,
    apply,
    architecture_of,
    begin,
    editable,
)
from ctcli.units import format_bytes


@dataclass(frozen=True)
class SurgeryReport:
    """What a rewrite of the weights themselves does.

    Attributes:
        family: the model's.
        changes: labels and values, for people.
        modules: how many modules change.
        untied: whether the head got a weight of its own.
        bytes_before: tensor bytes of the source.
        bytes_after: tensor bytes of the output.
    """

    family: str
    changes: tuple[tuple[str, str], ...]
    modules: int
    untied: bool
    bytes_before: int
    bytes_after: int

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> SurgeryReport:  # noqa: ARG002
        """Itself: the arithmetic is exact but for one rounding, and nothing was measured."""
        return self

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        rows = [("family", self.family), *self.changes]
        if self.untied:
            rows.append(("lm_head", "untied from the embedding"))
        before, after = format_bytes(self.bytes_before), format_bytes(self.bytes_after)
        return [*rows, ("tensor bytes", f"{before} -> {after}")]

    def items(self) -> list[str]:
        """Nothing more."""
        return []

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "family": self.family,
            "changes": dict(self.changes),
            "modules_changed": self.modules,
            "untied": self.untied,
            "tensor_bytes_before": self.bytes_before,
            "tensor_bytes_after": self.bytes_after,
        }


def fuse_norms(checkpoint: Checkpoint, options: FuseOptions) -> tuple[Checkpoint, SurgeryReport]:
    """Move the gain of every norm into the linears behind it: W' = W diag(gain), gain' = 1.

    A LayerNorm's bias b goes into theirs, W b, or stays divided by the gain where they have none.

    Raises:
        CtcliError: weights cannot be read, or the operation is not exact for the family.
    """
    dense = editable(checkpoint)
    architecture = architecture_of(dense, options.parts)
    architecture.require("fuse-norms", *(("center",) if options.center else ()))
    reads_norm = any(architecture.lm_head in norm.linears for norm in architecture.norms)
    unties = reads_norm or (options.center and architecture.unties_for_stream)
    surgery = begin("fuse-norms", dense, architecture, unties)
    changes = [("norms fused", str(fuse(surgery, architecture.norms)))]
    if options.center:
        from ctcli.ops.centring import Centring

        write_stream(surgery, Centring(architecture.hidden_size))
        changes.append(("centred", f"{len(architecture.writers)} writers of the residual stream"))
    arithmetic = Arithmetic("exact", options.device)
    result, report = finish(
        dense,
        surgery,
        arithmetic,
        options.tag,
        options.max_shard_size,
        {"use": "fuse-norms", **options.recipe},
        changes,
    )
    return result, replace(report, bytes_before=checkpoint.nbytes)


def fuse(surgery: Surgery, norms: Sequence[NormRole]) -> int:
    """Fuse those of an architecture's norms that are not fused yet. Returns how many."""
    architecture, stored = surgery.architecture, surgery.stored
    fused = 0
    for norm in norms:
        surgery.neutral.append(norm.module)
        weight = starting_point(stored[f"{norm.module}.weight"])
        if weight is None:
            continue
        fused += 1
        bias = stored.get(f"{norm.module}.bias")
        moves = starting_point(bias) if bias and norm.bias == "linears" else None
        gain = Gain(norm.module, weight, architecture.gain_offset, moves)
        surgery.gains |= dict.fromkeys(norm.linears, gain)
        if norm.bias == "norm":
            surgery.gains[f"{norm.module}.bias"] = replace(gain, divides=True)
    if architecture.bias_switch and any(gain.bias for gain in surgery.gains.values()):
        surgery.switched = architecture.bias_switch.linears
    return fused


def write_stream(surgery: Surgery, stream: Map) -> None:
    """Map the residual stream where it is written: embeddings, output linears, their biases."""
    for embedding in surgery.architecture.embeddings:
        surgery.columns[embedding].append(stream)
    rows = RowMap(stream)
    for writer in surgery.architecture.writers:
        surgery.rows[writer].append(rows)


def finish(
    checkpoint: Checkpoint,
    surgery: Surgery,
    arithmetic: Arithmetic,
    dtype: str | None,
    max_shard_size: int | None,
    step: Mapping[str, Any],
    changes: Sequence[tuple[str, str]],
) -> tuple[Checkpoint, SurgeryReport]:
    """Perform the edits, lay out, and report."""
    result = apply(checkpoint, surgery, arithmetic, dtype)
    result = replace(result, steps=(*checkpoint.steps, step))
    if max_shard_size:
        result = cut_to_size(result, max_shard_size)
    head = f"{surgery.architecture.lm_head}.weight"
    report = SurgeryReport(
        surgery.architecture.family,
        tuple(changes),
        len(surgery.modules),
        surgery.architecture.tied and head in surgery.stored,
        checkpoint.nbytes,
        result.nbytes,
    )
    return result, report
