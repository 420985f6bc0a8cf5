"""Who runs against whom, on which checkpoint. A new command is a new row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Race:
    """Contenders that do the same job.

    Attributes:
        checkpoint: arguments for `tests.bench.make_checkpoint`.
        commands: a command line for each contender, with {src} and {dst}; ours comes first.
    """

    checkpoint: tuple[str, ...]
    commands: Mapping[str, str]


_LLAMA_1B = (
    *("--hidden", "2048", "--intermediate", "8192", "--layers", "16", "--heads", "32"),
    *("--kv-heads", "8", "--vocabulary", "128256", "--shard-mb", "300"),
)

RACES = {
    "reindex": Race(
        _LLAMA_1B,
        {
            "ctcli reindex": "{python} -m ctcli reindex {src} {dst} --quiet",
            "cp -r": "cp -r {src} {dst}",
        },
    ),
}
