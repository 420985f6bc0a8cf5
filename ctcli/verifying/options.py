"""What `ctcli verify` is asked to check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ctcli.formats.loaders import Loader
from ctcli.formats.sources.presharded import parts_by_pattern, presharded
from ctcli.options import OptionError, memory, option, revision, threads


@dataclass(frozen=True)
class VerifyOptions:
    """Check that a checkpoint is what it says, and, with --against, what it was made from.

    Exits with 3 if there is any difference, and lists them all.
    """

    against: str | None = option(
        None, "What DST was made from: a local directory or a hub id.", metavar="SRC"
    )
    revision: str | None = revision()
    max_error: float | None = option(
        None,
        "Largest relative error (rms of the error over rms of the weight) of a module.",
        "any",
        metavar="X",
        least=0.0,
    )
    target: Loader | None = option(None, "Check what this loader demands.")
    tp: int = option(1, "Tensor-parallel size, for vllm.", least=1)
    sha256: Path | None = option(
        None, "Hashes of all files and tensors: compared with FILE if it exists, else written."
    )
    presharded: tuple[str, ...] = presharded()
    html: Path | None = option(None, "Write the result as a page, with a chart of the errors.")
    num_workers: int | None = threads()
    max_memory: int = memory()

    def __post_init__(self) -> None:
        """Refuse options that would have no effect, and parse what they say."""
        _ = self.parts
        if self.revision and not self.against:
            raise OptionError("--revision is for --against.")
        if self.max_error is not None and not self.against:
            raise OptionError("--max-error is for --against.")
        if self.tp > 1 and self.target != "vllm":
            raise OptionError("--tp is for --target vllm.")

    @cached_property
    def parts(self) -> Mapping[str, int]:
        """Into how many parts the rows of modules are cut, by pattern."""
        return parts_by_pattern(self.presharded)
