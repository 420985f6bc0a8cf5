"""The rewrites: by the command's name, its options and the function that takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ctcli.checkpoint.value import Checkpoint
from ctcli.console import Report
from ctcli.rewrites.exporting.export_bin import export_bin
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.options import RewriteOptions
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.rewrites.reindex import ReindexOptions, reindex
from ctcli.rewrites.surgery.fuse_norms import fuse_norms
from ctcli.rewrites.surgery.options import FuseOptions, RotateOptions
from ctcli.rewrites.surgery.rotate import rotate

Options = TypeVar("Options", bound=RewriteOptions)
Work = Callable[[Checkpoint], tuple[Checkpoint, Report]]


@dataclass(frozen=True)
class Rewrite(Generic[Options]):
    """A command that makes a checkpoint of another."""

    options: type[Options]
    function: Callable[[Checkpoint, Options], tuple[Checkpoint, Report]]

    def step(self, options: Options) -> Step:
        """The rewrite with these options."""
        function = self.function
        return Step(lambda each: function(each, options), options.makes_file, options.links)


@dataclass(frozen=True)
class Step:
    """A rewrite with its options.

    Attributes:
        rewrite: what it does.
        is_file: whether it makes a .bin file, after which there is no checkpoint to go on with.
        link: whether shards that do not change become links.
    """

    rewrite: Work
    is_file: bool = False
    link: bool = False


# In the order of the help.
REWRITES: Mapping[str, Rewrite[Any]] = {
    "reindex": Rewrite(ReindexOptions, reindex),
    "fuse-norms": Rewrite(FuseOptions, fuse_norms),
    "rotate": Rewrite(RotateOptions, rotate),
    "quantize": Rewrite(QuantizeOptions, quantize),
    "export-bin": Rewrite(ExportOptions, export_bin),
}
