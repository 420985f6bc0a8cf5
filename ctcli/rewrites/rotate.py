"""`ctcli rotate`: rotations of the residual stream (R1), between values and output (R2), of the
MLPs' inner activations (R4, online) and of queries and keys (R3, online), as SpinQuant names them
(Liu et al. 2024, arXiv:2405.16406).

R1 and R2 leave an ordinary checkpoint that computes the same. R3 and R4 need a server that rotates
activations while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ctcli.checkpoint import Checkpoint
from ctcli.errors import CtcliError
from ctcli.models.architecture import Architecture, AttentionRole
from ctcli.models.mapping import ArchitectureMapping
from ctcli.rewrites.edits import Arithmetic, RowMap
from ctcli.rewrites.fuse_norms import SurgeryReport, finish, fuse, write_stream
from ctcli.rewrites.surgery import FLOATS, Surgery, architecture_of, begin, check_editable

if TYPE_CHECKING:
    import torch

    from ctcli.ops.rotation import Rotation

TransformType = Literal["hadamard", "random-hadamard", "random-matrix"]
Precision = Literal["auto", "float32", "float64"]
RotationName = Literal["R1", "R2", "R3", "R4"]


@dataclass(frozen=True)
class RotateOptions:
    """All that decides the output of rotate.

    Attributes:
        mapping: the checkpoint's parts, where its family is not known.
        rotations: which of R1 to R4.
        transform_type: where the matrices come from.
        seed: of the random ones; None: compressed-tensors' own constant.
        randomize: a matrix of its own for each place where that is possible (R2, R4).
        block_size: R1 and R4 rotate blocks of so many coordinates; None: all together.
        precision: what to compute in; auto is float32 for 16-bit weights, else float64.
        learned: matrices by name, `R1` and `<attention>.R2`, in place of made ones.
        device: torch's name of the device to compute on.
        max_shard_size: bytes of tensor data that a shard may hold; None leaves the shards.
        recipe: the options as a user gave them.
    """

    mapping: ArchitectureMapping | None
    rotations: tuple[RotationName, ...]
    transform_type: TransformType
    seed: int | None
    randomize: bool
    block_size: int | None
    precision: Precision
    learned: Mapping[str, torch.Tensor] | None
    device: str
    max_shard_size: int | None
    recipe: Mapping[str, Any]


def rotate(checkpoint: Checkpoint, options: RotateOptions) -> tuple[Checkpoint, SurgeryReport]:
    """Fuse the norms, then rotate: readers become W Q, writers Q^T W.

    Raises:
        CtcliError: the checkpoint is quantized, an operation is not exact for its family, or
            there is no such matrix.
    """
    check_editable(checkpoint)
    architecture, chosen = architecture_of(checkpoint, options.mapping), options.rotations
    architecture.require(*(("fuse-norms",) if "R1" in chosen else ()), *chosen)
    unties = "R1" in chosen and architecture.unties_for_stream
    surgery = begin(checkpoint, architecture, unties)
    matrices = _Matrices(options, architecture)
    changes = []
    if "R1" in chosen:
        fuse(surgery)
        changes.append(("norms fused", str(len(surgery.neutral))))
        stream = matrices.stream()
        rotate_stream(surgery, stream)
        changes.append(("R1", stream.description))
    if "R2" in chosen:
        rotate_values(surgery, {a.module: matrices.values(a) for a in architecture.attentions})
        changes.append(("R2", _words(matrices.values(a) for a in architecture.attentions)))
    arithmetic = Arithmetic(_precision(checkpoint, options.precision), options.device)
    step = {"use": "rotate", **options.recipe}
    return finish(checkpoint, surgery, arithmetic, None, options.max_shard_size, step, changes)


def rotate_stream(surgery: Surgery, rotation: Rotation) -> None:
    """R1: what is written into the residual stream, and what reads it."""
    write_stream(surgery, rotation)
    for reader in surgery.architecture.readers:
        surgery.columns[reader].append(rotation)
    for norm in surgery.architecture.norms:
        if norm.bias == "norm" and norm.on_stream:
            surgery.columns[f"{norm.module}.bias"].append(rotation)


def rotate_values(surgery: Surgery, rotations: Mapping[str, Rotation]) -> None:
    """R2: value heads, and the columns of the output linear that read them."""
    for attention in surgery.architecture.attentions:
        rotation = rotations[attention.module]
        surgery.rows[attention.v.module].append(RowMap(rotation, attention.v))
        surgery.columns[attention.o].append(rotation)


class _Matrices:
    """The rotations of a run, each made once."""

    def __init__(self, options: RotateOptions, architecture: Architecture) -> None:
        self._options = options
        self._architecture = architecture
        self._made: dict[str, Rotation] = {}

    def stream(self) -> Rotation:
        """R1."""
        keeps_ones = self._architecture.norm_kind == "layer"
        size, block = self._architecture.hidden_size, self._options.block_size
        return self._get("R1", "R1", size, block, keeps_ones)

    def values(self, attention: AttentionRole) -> Rotation:
        """R2 of one attention block."""
        own = self._options.randomize or self._options.learned is not None
        name = f"{attention.module}.R2" if own else f"R2 of {attention.v.size}"
        return self._get(name, "R2", attention.v.size, None)

    def _get(
        self, name: str, scheme: str, size: int, block: int | None, keeps_ones: bool = False
    ) -> Rotation:
        if name not in self._made:
            if self._options.learned is not None:
                self._made[name] = self._learned(name, size, keeps_ones)
            else:
                self._made[name] = self._make(name, scheme, size, block, keeps_ones)
        return self._made[name]

    def _make(
        self, name: str, scheme: str, size: int, block: int | None, keeps_ones: bool
    ) -> Rotation:
        from ctcli.ops.transforms import make_rotation, seed_for, seeded

        seed = self._options.seed
        if self._options.randomize and scheme != "R1":
            seed = seed_for(seed, name)
        try:
            return make_rotation(
                self._options.transform_type,
                size,
                seeded(seed),
                block_size=block,
                keeps_ones=keeps_ones,
            )
        except ValueError as error:
            raise CtcliError(
                f"{scheme}: {error}.", "Give another --block-size, or leave this rotation out."
            ) from error

    def _learned(self, name: str, size: int, keeps_ones: bool) -> Rotation:
        import torch

        from ctcli.ops.rotation import ORTHOGONALITY_TOLERANCE, from_matrix

        matrices = self._options.learned or {}
        hint = (
            "Give a file with R1 [hidden, hidden] and <attention>.R2 [head, head] for each layer."
        )
        if name not in matrices:
            raise CtcliError(f"{name}: not in the rotation file.", hint)
        try:
            rotation = from_matrix(matrices[name])
        except ValueError as error:
            raise CtcliError(f"{name}: {error}.", hint) from error
        if rotation.size != size:
            raise CtcliError(f"{name}: it rotates {rotation.size} coordinates, not {size}.", hint)
        ones = torch.ones(1, size, dtype=torch.float64)
        moved = float((rotation.apply(ones) - ones).abs().max())
        if keeps_ones and moved > ORTHOGONALITY_TOLERANCE:
            raise CtcliError(
                f"{name}: a LayerNorm subtracts the mean, which this one moves by {moved:.1e}.",
                "Such models need a rotation that keeps the vector of ones; leave R1 out.",
            )
        return rotation


def _precision(checkpoint: Checkpoint, precision: Precision) -> str:
    if precision != "auto":
        return precision
    floats = {tensor.spec.dtype for _, tensor in checkpoint.tensors()} & set(FLOATS)
    return "float32" if floats <= {"BF16", "F16"} else "float64"


def _words(rotations: Iterable[Rotation]) -> str:
    return ", ".join(dict.fromkeys(rotation.description for rotation in rotations))
