"""`ctcli quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from ctcli.cli.options import OFF, Device, MaxShardSize
from ctcli.cli.running import Step
from ctcli.rewrites.quantizing.options import quantize_options
from ctcli.rewrites.quantizing.selection import OnIndivisible
from ctcli.schemes.family import ComputeDtype, Observer
from ctcli.schemes.parsing import Overrides


class Block(NamedTuple):
    """A tile; typer would take a plain tuple for two words of the command line."""

    rows: int
    columns: int


def _block(text: str) -> Block:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise typer.BadParameter(f"{text!r} is no block: give rows and columns, as in 128x128.")
    return Block(int(rows), int(columns))


def quantize(
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]NAME",
            show_default="none",
            help="Preset such as W4A16, for all linears or for those that PATTERN matches (a name, "
            "or re: and an expression). Repeatable; the first that matches counts.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="compressed-tensors' own JSON (config_groups, ignore), instead of --scheme.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, metavar="BITS", show_default="the scheme's", help="Bits of a weight."
        ),
    ] = None,
    type_: Annotated[
        Literal["int", "float"] | None,
        typer.Option("--type", show_default="the scheme's", help="Integers, or FP8 and FP4."),
    ] = None,
    strategy: Annotated[
        Literal["tensor", "channel", "group", "block", "tensor_group"] | None,
        typer.Option(show_default="the scheme's", help="Which weights share a scale."),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", show_default="the scheme's", help="Columns that share a scale."
        ),
    ] = None,
    block: Annotated[
        Block | None,
        typer.Option(
            parser=_block,
            metavar="ROWSxCOLUMNS",
            show_default="the scheme's",
            help="Tile that shares a scale (128x128).",
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric", show_default="the scheme's", help="Without a zero point?"
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            show_default="what vLLM loads",
            help="Layout on disk: pack-quantized, int-quantized, float-quantized, naive-quantized.",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default="linears",
            help="Module to quantize although it is protected by default (lm_head). Repeatable.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default="embeddings, heads, routers, norms, convolutions, towers, MTP",
            help="Module to leave alone, beside the default ones. Repeatable.",
        ),
    ] = None,
    default_ignore: Annotated[
        bool,
        typer.Option(
            "--default-ignore/--no-default-ignore",
            show_default="on",
            help="Leave the default modules alone.",
        ),
    ] = True,
    on_indivisible: Annotated[
        OnIndivisible,
        typer.Option(
            show_default="error",
            help="What to do with weights whose columns are no multiple of the group size.",
        ),
    ] = "error",
    observer: Annotated[
        Observer,
        typer.Option(
            show_default="minmax",
            help="Range of a group: its extremes, or the shrunk range with the least squared "
            "error (mse, slower).",
        ),
    ] = "minmax",
    compute_dtype: Annotated[
        ComputeDtype,
        typer.Option(
            show_default="float32",
            help="Dtype of weight / scale: float32, as compressed-tensors has it on GPUs, or the "
            "weight's, as on CPUs.",
        ),
    ] = "float32",
    input_scales: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="safetensors file with <module>.input_scale or .input_global_scale for static "
            "schemes, and k_scale and v_scale for an FP8 key-value cache.",
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite", show_default=OFF, help="Let NaN and infinite weights through."
        ),
    ] = False,
    max_shard_size: MaxShardSize = None,
    device: Device = "cpu",
) -> Step:
    """Quantize linears into a compressed-tensors checkpoint, without a model and without data.

    Embeddings, heads, routers and gates, norms, convolutions, vision and audio towers and
    multi-token-prediction layers are left alone unless --targets names them.
    """
    from ctcli.rewrites.quantizing.quantize import quantize as quantize_checkpoint  # imports torch

    options = quantize_options(
        schemes=scheme or (),
        config=config,
        overrides=Overrides(bits, type_, strategy, group_size, block, symmetric, format_),
        targets=targets or (),
        ignore=ignore or (),
        default_ignore=default_ignore,
        on_indivisible=on_indivisible,
        observer=observer,
        compute_dtype=compute_dtype,
        input_scales=input_scales,
        allow_nonfinite=allow_nonfinite,
        device=device,
        max_shard_size=max_shard_size,
    )
    return Step(lambda checkpoint: quantize_checkpoint(checkpoint, options))
