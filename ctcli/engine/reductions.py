"""The values that need a pass over the data, while they are being computed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ctcli.engine.jobs import Job, ReduceJob
from ctcli.lazy.tensors import Matrix, Reduction

if TYPE_CHECKING:
    from torch import Tensor


class Values:
    """Collects the parts of every reduction among some jobs."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._lock = threading.Lock()
        self._values: dict[Reduction, Any] = {}
        self._parts: dict[Reduction, dict[tuple[Matrix, int], Tensor | None]] = {}
        for job in jobs:
            if isinstance(job, ReduceJob):
                parts = self._parts.setdefault(job.reduction, {})
                parts[job.matrix, job.span.start] = None

    def knows(self, reduction: Reduction) -> bool:
        """Whether the value can be had now."""
        return reduction in self._values

    def known(self, reduction: Reduction) -> Any:
        """The value: a tensor, or an array where the reduction takes bits."""
        return self._values[reduction]

    def add(self, job: ReduceJob, part: Tensor) -> None:
        """Take the part that a job found; the last one makes the value.

        Parts are combined in the order of the jobs, so that no race shows in the value.
        """
        reduction = job.reduction
        with self._lock:
            parts = self._parts[reduction]
            parts[job.matrix, job.span.start] = part
            found = [value for value in parts.values() if value is not None]
            if len(found) == len(parts):
                combined = combine(found, reduction.combine)
                after = self.known(reduction.after) if reduction.after else None
                self._values[reduction] = reduction.finish(combined, after)
                parts.clear()  # together they may be as large as the weights


def combine(parts: Iterable[Tensor], how: str) -> Tensor:
    """Element-wise largest (NaN if one is) or sum of some tensors; a single one may be an array."""
    first, *others = parts
    if not others:
        return first
    import torch

    stacked = torch.stack([first, *others])
    return stacked.amax(0) if how == "max" else stacked.sum(0)
