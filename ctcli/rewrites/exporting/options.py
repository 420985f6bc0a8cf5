"""The options of `ctcli export-bin`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctcli.options import OptionError, option
from ctcli.rewrites.options import RewriteOptions
from ctcli.storage.destination import ONE_FILE, Form
from ctcli.storage.llama2c import Version


@dataclass(frozen=True)
class ExportOptions(RewriteOptions):
    """Export a Llama to one .bin file for llama2.c.

    What the format cannot hold (biases, RoPE scaling, other architectures, ...) is refused.
    """

    form: ClassVar[Form] = ONE_FILE

    version: Version = option(
        2, "Format: 0 is float32 for run.c, 1 float32 with a longer header, 2 Q8_0 for runq.c."
    )
    group_size: int | None = option(
        None,
        "Elements that share a scale in version 2.",
        "64, halved until it divides dim and hidden_dim",
        least=1,
    )
    max_seq_len: int | None = option(
        None,
        "Positions that the reader makes room for in its key-value cache.",
        "max_position_embeddings",
        least=1,
        most=2**31 - 1,
    )
    tokenizer: bool = option(
        False, "Write tokenizer.bin beside OUT.bin, from tokenizer.model or tokenizer.json."
    )
    allow_nonstandard: bool = option(
        False, "Let a RoPE base or a norm's epsilon through that the stock readers do not use."
    )

    def __post_init__(self) -> None:
        """Refuse a group size where there are no groups."""
        if self.group_size and self.version != 2:
            raise OptionError("--group-size is for --version 2: the others are not quantized.")
