"""What has been done of each output file: jobs left, parts noted, what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ctcli.engine.graph import Graph
from ctcli.engine.jobs import Task
from ctcli.engine.perform import Done
from ctcli.lazy.nodes import Node
from ctcli.storage.journal import JobRecord
from ctcli.storage.writer import PartialDirectory


class Ledger:
    """Kept by the coordinator of a run alone.

    Args:
        graph: the files.
        tasks: what is still to be done for them.
        parts: what an earlier run did.
        partial: keeps the journal.
    """

    def __init__(
        self,
        graph: Graph,
        tasks: Iterable[Task],
        parts: Iterable[JobRecord],
        partial: PartialDirectory,
    ) -> None:
        self._nodes = graph.nodes
        self._partial = partial
        self._left = dict.fromkeys(graph.files, 0)
        self._measures: dict[str, dict[str, dict[int, Sequence[float]]]] = defaultdict(dict)
        for task in tasks:
            for name in task.files:
                self._left[name] += task.count
        for part in parts:
            self._measure(part)

    def note(self, ended: Iterable[tuple[Task, Done]]) -> list[str]:
        """Note jobs that are done; returns the files that they were the last ones of."""
        parts, complete = [], []
        for task, done in ended:
            if not task.files:
                continue
            measured = combine_measures(task.node, done.measures) if task.node else []
            part = JobRecord(task.files[0], done.job.place, done.nbytes, measured)
            self._measure(part)
            for name in task.files:
                self._left[name] -= 1
            last = [name for name in task.files if not self._left[name]]
            complete += last
            # What went into several files cannot be taken up again in one of them. Without bytes,
            # another job may have the same place.
            if len(task.files) == 1 and not last and done.nbytes:
                parts.append(part)
        if parts:
            self._partial.note_parts(parts)
        return complete

    def complete(self, name: str) -> None:
        """Note that a file is complete, and on the disk if that was asked for."""
        self._partial.note_file(name, self.errors(name))

    def errors(self, name: str) -> dict[str, list[float]]:
        """What was measured of each module: by rows in order, so that no race shows in a sum."""
        found = {}
        for key, parts in self._measures[name].items():
            node = self._nodes[key]
            found[node.module] = combine_measures(node, [parts[at] for at in sorted(parts)])
        return found

    def _measure(self, part: JobRecord) -> None:
        key, start = part.place
        if part.measured:
            self._measures[part.file].setdefault(key, {})[start] = part.measured


def combine_measures(node: Node, measures: Iterable[Sequence[float]]) -> list[float]:
    """What was measured on several blocks of a node, as one."""
    combine = max if node.measure == "max" else sum
    return [combine(column) for column in zip(*measures, strict=True)]
