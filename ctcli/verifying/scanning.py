"""Looking at everything: checks as tasks of the engine's schedule, with nothing to write."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait

from ctcli.engine.jobs import MORE_MEMORY, Job, NodeJob, memory_problem, node_tasks
from ctcli.engine.perform import Done, SourceReader, compute
from ctcli.engine.schedule import Schedule, Stop
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import all_nodes
from ctcli.lazy.values import Values
from ctcli.units import Advance
from ctcli.verifying.checks import Check, Seen


def bytes_to_read(checks: Sequence[Check]) -> int:
    """Bytes that the checks read, with the values that they need."""
    nodes = all_nodes([check.node for check in checks])
    return sum(tensor.spec.nbytes for node in nodes for tensor in node.reads)


def scan_all(
    checks: Sequence[Check], workers: int, max_memory: int, advance: Advance
) -> list[tuple[Check, Seen]]:
    """Look at everything.

    Args:
        checks: what to look at.
        workers: threads.
        max_memory: bytes that all jobs under way may hold together.
        advance: is told bytes that were read.

    Returns:
        The checks and what was seen, in their order.

    Raises:
        CtcliError: something cannot be read, or the largest job needs more memory.
    """
    ordered = [check.node for check in sorted(checks, key=lambda check: check.place)]
    nodes = {node.key: node for node in all_nodes(ordered)}
    tasks = node_tasks(ordered)
    if too_little := memory_problem(tasks, max_memory):
        raise CtcliError(too_little, MORE_MEMORY)
    seen: dict[str, dict[int, Seen]] = {check.node.key: {} for check in checks}
    stop = Stop(advance)

    def do(jobs: Sequence[Job], values: Values) -> list[Done]:
        with SourceReader(stop, writes=False) as reader:
            of_nodes = [job for job in jobs if isinstance(job, NodeJob)]
            return [compute(job, nodes[job.key], values.known, reader) for job in of_nodes]

    jobs = ((task, job) for task in tasks for job in task.jobs())
    schedule = Schedule(tasks, jobs, workers, max_memory, do)
    try:
        while not schedule.is_over:
            schedule.start()
            wait(schedule.running, return_when=FIRST_COMPLETED)
            for task, done in schedule.collect():
                if task.node and not task.node.is_value:
                    assert isinstance(done.job, NodeJob)
                    found = _together([part for (part,) in done.measures])
                    seen[task.node.key][done.job.start] = found
    finally:
        stop.stop()
        schedule.stop()
        wait(schedule.running)
    return [
        (check, _together([part for _, part in sorted(seen[check.node.key].items(), key=_start)]))
        for check in checks
    ]


def _start(part: tuple[int, Seen]) -> int:
    return part[0]


def _together(parts: Sequence[Seen]) -> Seen:
    seen = Seen()
    for part in parts:
        seen.faults.update(part.faults)
        seen.errors.extend(part.errors)
    return seen
