"""The rewrites: functions from a command's options to a step, by the command's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ctcli.cli.export_bin import export_bin
from ctcli.cli.quantize import quantize
from ctcli.cli.reindex import reindex
from ctcli.cli.running import Step
from ctcli.cli.surgery import fuse_norms, rotate

# In the order of the help.
REWRITES: Mapping[str, Callable[..., Step]] = {
    "reindex": reindex,
    "fuse-norms": fuse_norms,
    "rotate": rotate,
    "quantize": quantize,
    "export-bin": export_bin,
}
