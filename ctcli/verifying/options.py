"""What `ctcli verify` is asked to check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.formats.loaders import Loader


@dataclass(frozen=True)
class VerifyOptions:
    """What to check.

    Attributes:
        source: what the checkpoint should be, but for quantization; None: there is no source.
        max_error: the largest relative root mean square error of a weight; None: any.
        target: a loader that should take it.
        tensor_parallel: machines over which vLLM spreads it.
        workers: threads.
        manifest: file with hashes to compare with, or to write if there is none.
    """

    source: Checkpoint | None = None
    max_error: float | None = None
    target: Loader | None = None
    tensor_parallel: int = 1
    workers: int = 1
    manifest: Path | None = None
