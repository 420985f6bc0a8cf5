"""`ctcli export-bin`."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from ctcli.cli.options import OFF
from ctcli.cli.running import Step
from ctcli.rewrites.exporting.export_bin import ExportOptions
from ctcli.rewrites.exporting.export_bin import export_bin as export_checkpoint
from ctcli.storage.llama2c import Version


def export_bin(
    version: Annotated[
        int,
        typer.Option(
            min=0,
            max=2,
            metavar="0|1|2",
            show_default="2",
            help="Format: 0 is float32 for run.c, 1 float32 with a longer header, 2 Q8_0 for "
            "runq.c.",
        ),
    ] = 2,
    group_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default="64, halved until it divides dim and hidden_dim",
            help="Elements that share a scale in version 2.",
        ),
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            metavar="N",
            show_default="max_position_embeddings",
            help="Positions that the reader makes room for in its key-value cache.",
        ),
    ] = None,
    tokenizer: Annotated[
        bool,
        typer.Option(
            "--tokenizer",
            show_default=OFF,
            help="Write tokenizer.bin beside OUT.bin, from tokenizer.model or tokenizer.json.",
        ),
    ] = False,
    allow_nonstandard: Annotated[
        bool,
        typer.Option(
            "--allow-nonstandard",
            show_default=OFF,
            help="Let a RoPE base or a norm's epsilon through that the stock readers do not use.",
        ),
    ] = False,
) -> Step:
    """Export a Llama to one .bin file for llama2.c.

    What the format cannot hold (biases, RoPE scaling, other architectures, ...) is refused.
    """
    if group_size and version != 2:
        raise typer.BadParameter("--group-size is for --version 2: the others are not quantized.")
    options = ExportOptions(
        cast(Version, version), group_size, max_seq_len, tokenizer, allow_nonstandard
    )
    return Step(lambda checkpoint: export_checkpoint(checkpoint, options), is_file=True)
