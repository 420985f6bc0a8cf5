"""`ctcli fuse-norms` and `ctcli rotate` in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.recipes import make_steps
from ctcli.engine.plan import Settings, make_plan
from ctcli.engine.run import execute
from ctcli.rewrites.surgery.fuse_norms import SurgeryReport, fuse_norms
from ctcli.rewrites.surgery.options import fuse_options, rotate_options
from ctcli.rewrites.surgery.rotate import rotate
from ctcli.storage.layout import lay_out
from ctcli.storage.opening import open_checkpoint

FUSE: Mapping[str, Any] = {
    "mapping": None,
    "center": False,
    "dtype": None,
    "device": "cpu",
    "max_shard_size": None,
}
ROTATE: Mapping[str, Any] = {
    "mapping": None,
    "rotations": None,
    "transform_type": None,
    "seed": None,
    "randomize": False,
    "block_size": None,
    "precision": "auto",
    "save_online_weights": False,
    "transform_config": None,
    "rotation_file": None,
    "device": "cpu",
    "max_shard_size": None,
}
Rewrite = Callable[[Checkpoint], tuple[Checkpoint, SurgeryReport]]


def run_fuse_norms(source: Path, destination: Path, workers: int = 2, **options: Any) -> Path:
    """Fuse the norms of `source` into `destination`; options are those of `fuse_options`."""
    chosen = fuse_options(**{**FUSE, **options})
    return _run(source, destination, lambda checkpoint: fuse_norms(checkpoint, chosen), workers)


def run_rotate(source: Path, destination: Path, workers: int = 2, **options: Any) -> Path:
    """Rotate `source` into `destination`; options are those of `rotate_options`."""
    chosen = rotate_options(**{**ROTATE, **options})
    return _run(source, destination, lambda checkpoint: rotate(checkpoint, chosen), workers)


def _run(source: Path, destination: Path, rewrite: Rewrite, workers: int) -> Path:
    checkpoint, _ = rewrite(open_checkpoint(str(source)))
    execute(make_plan(lay_out(checkpoint), destination, Settings(workers, 2 * 10**9)), _ignore)
    return destination


def _ignore(nbytes: int) -> None:
    """Progress is not looked at."""


def run_steps(source: Path, destination: Path, *steps: Mapping[str, Any], workers: int = 2) -> Path:
    """Do the steps of a recipe in one pass."""
    rewrites = [step.rewrite for _, step in make_steps(steps)]
    checkpoint = open_checkpoint(str(source))
    for rewrite in rewrites:
        checkpoint, _ = rewrite(checkpoint)
    execute(make_plan(lay_out(checkpoint), destination, Settings(workers, 2 * 10**9)), _ignore)
    return destination
