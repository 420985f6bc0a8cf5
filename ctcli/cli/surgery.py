"""`ctcli fuse-norms` and `ctcli rotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from ctcli.cli.options import OFF, Device, MappingFile, MaxShardSize
from ctcli.cli.running import Step
from ctcli.rewrites.surgery.matrices import TransformType
from ctcli.rewrites.surgery.rotate import Precision, RotationName


def fuse_norms(
    center: Annotated[
        bool,
        typer.Option(
            "--center",
            show_default=OFF,
            help="LayerNorm models: take the mean out of what is written into the residual "
            "stream, so that each LayerNorm computes what an RMSNorm would.",
        ),
    ] = False,
    dtype: Annotated[
        Literal["float32"] | None,
        typer.Option(
            show_default="the tensors' own",
            help="Write all floats in this dtype, for a chain without rounding in between.",
        ),
    ] = None,
    mapping: MappingFile = None,
    max_shard_size: MaxShardSize = None,
    device: Device = "cpu",
) -> Step:
    """Move the gain of every norm into the linears that read it.

    The model computes the same, and its norms have gains of one. Tied embeddings are untied where
    the final norm goes into lm_head.
    """
    from ctcli.rewrites.surgery.fuse_norms import fuse_norms as fuse
    from ctcli.rewrites.surgery.options import fuse_options

    options = fuse_options(
        mapping=mapping,
        center=center,
        dtype=dtype,
        device=device,
        max_shard_size=max_shard_size,
    )
    return Step(lambda checkpoint: fuse(checkpoint, options))


def _rotations(text: str) -> str:
    names = [name.strip().upper() for name in text.split(",")]
    if not set(names) <= {"R1", "R2", "R3", "R4"} or len(set(names)) < len(names):
        raise typer.BadParameter(f"{text!r}: give some of R1,R2,R3,R4.")
    return ",".join(sorted(names))


def rotate(
    rotations: Annotated[
        str | None,
        typer.Option(
            parser=_rotations,
            metavar="NAMES",
            show_default="R1,R2",
            help="R1: the residual stream. R2: values. R3, R4: queries and keys, and the MLPs' "
            "inner activations, for servers that rotate these while they run.",
        ),
    ] = None,
    transform_type: Annotated[
        TransformType | None,
        typer.Option(show_default="hadamard", help="Where the matrices come from."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**64 - 1,
            metavar="N",
            show_default="compressed-tensors' constant",
            help="Of random signs and matrices.",
        ),
    ] = None,
    randomize: Annotated[
        bool,
        typer.Option(
            "--randomize", show_default=OFF, help="R2: a different matrix for each layer."
        ),
    ] = False,
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default="all together",
            help="R1, R4: rotate blocks of so many coordinates.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            show_default="auto",
            help="Arithmetic; auto is float32 for 16-bit weights, float64 for wider ones.",
        ),
    ] = "auto",
    save_online_weights: Annotated[
        bool,
        typer.Option(
            "--save-online-weights",
            show_default=OFF,
            help="R3: write its matrix too, which vLLM cannot load.",
        ),
    ] = False,
    transform_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="compressed-tensors' TransformConfig as JSON, instead of --rotations. Norms are "
            "not fused.",
        ),
    ] = None,
    rotation_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="Learned matrices as SpinQuant publishes them: R1, <attention>.R2.",
        ),
    ] = None,
    mapping: MappingFile = None,
    max_shard_size: MaxShardSize = None,
    device: Device = "cpu",
) -> Step:
    """Rotate the weights, so that no coordinate stands out; the model computes the same.

    Norms are fused first. With R1 and R2 the result is an ordinary checkpoint.
    """
    from ctcli.rewrites.surgery.options import rotate_options
    from ctcli.rewrites.surgery.rotate import rotate as rotate_checkpoint

    options = rotate_options(
        mapping=mapping,
        rotations=cast(list[RotationName], rotations.split(",")) if rotations else None,
        transform_type=transform_type,
        seed=seed,
        randomize=randomize,
        block_size=block_size,
        precision=precision,
        save_online_weights=save_online_weights,
        transform_config=transform_config,
        rotation_file=rotation_file,
        device=device,
        max_shard_size=max_shard_size,
    )
    return Step(lambda checkpoint: rotate_checkpoint(checkpoint, options))
