"""`ctcli fuse-norms`, `ctcli rotate` and `ctcli equalize` in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.cli.layouts import layout_of
from ctcli.cli.recipes import make_steps
from ctcli.engine.plan import Settings, make_plan
from ctcli.engine.run import execute
from ctcli.rewrites.equalizing.equalize import equalize
from ctcli.rewrites.equalizing.options import EqualizeOptions
from ctcli.rewrites.surgery.fuse_norms import SurgeryReport, fuse_norms
from ctcli.rewrites.surgery.options import FuseOptions, RotateOptions
from ctcli.rewrites.surgery.rotate import rotate
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import open_checkpoint

Rewrite = Callable[[Checkpoint], tuple[Checkpoint, SurgeryReport]]


def run_fuse_norms(source: Path, destination: Path, workers: int = 2, **options: Any) -> Path:
    """Fuse the norms of `source` into `destination`; options are those of `FuseOptions`."""
    chosen = FuseOptions(**options)
    return _run(source, destination, lambda checkpoint: fuse_norms(checkpoint, chosen), workers)


def run_rotate(source: Path, destination: Path, workers: int = 2, **options: Any) -> Path:
    """Rotate `source` into `destination`; options are those of `RotateOptions`."""
    chosen = RotateOptions(**options)
    return _run(source, destination, lambda checkpoint: rotate(checkpoint, chosen), workers)


def run_equalize(source: Path, destination: Path, workers: int = 2, **options: Any) -> Path:
    """Equalize `source` into `destination`; options are those of `EqualizeOptions`."""
    chosen = EqualizeOptions(**options)
    return _run(source, destination, lambda checkpoint: equalize(checkpoint, chosen), workers)


def _run(source: Path, destination: Path, rewrite: Rewrite, workers: int) -> Path:
    checkpoint, _ = rewrite(open_checkpoint(str(source)))
    execute(make_plan(lay_out(checkpoint), destination, Settings(workers, 2 * 10**9)), _ignore)
    return destination


def _ignore(nbytes: int) -> None:
    """Progress is not looked at."""


def run_steps(source: Path, destination: Path, *steps: Mapping[str, Any], workers: int = 2) -> Path:
    """Do the steps of a recipe in one pass."""
    rewrites = [step.rewrite for _, step in make_steps(steps)]
    made: Made = open_checkpoint(str(source))
    for rewrite in rewrites:
        assert isinstance(made, Checkpoint)
        made, _ = rewrite(made)
    layout = layout_of(made, destination)
    execute(make_plan(layout, destination, Settings(workers, 2 * 10**9)), _ignore)
    return destination
