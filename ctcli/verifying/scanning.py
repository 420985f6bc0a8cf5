"""Looking at everything: checks as tasks of the engine's schedule, with nothing to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ctcli.engine.jobs import MORE_MEMORY, Job, NodeJob, Task, memory_problem, node_tasks
from ctcli.engine.perform import Done, SourceReader, compute
from ctcli.engine.schedule import Schedule, Stop
from ctcli.errors import CtcliError
from ctcli.lazy.nodes import all_nodes
from ctcli.lazy.values import Values
from ctcli.options import cores
from ctcli.units import Advance
from ctcli.verifying.checks import Check, Seen
from ctcli.verifying.manifest import Manifest, hash_files
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.subject import Subject

# Makes a progress callback for so many bytes.
Progress = Callable[[str, int], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Scanned:
    """What was seen of a checkpoint.

    Attributes:
        results: all checks, in order, with what each has seen.
        hashes: of the files whose hashes are asked for.
    """

    results: Sequence[tuple[Check, Seen]]
    hashes: Manifest


def scan_here(subject: Subject, options: VerifyOptions, progress: Progress) -> Scanned:
    """Look at everything in this process.

    Args:
        subject: the checkpoint.
        options: how.
        progress: is told of bytes that were read.

    Raises:
        CtcliError: see `scan_all`.
    """
    workers = options.num_workers or cores()
    with progress("verify", bytes_to_read(subject.checks)) as advance:
        results = scan_all(subject.checks, workers, options.max_memory, advance)
    hashes = Manifest({}, {})
    if options.sha256:
        with progress("sha256", sum(file.size for file in subject.hashed)) as advance:
            hashes = hash_files(subject.hashed, subject.snapshot, workers, advance)
    return Scanned(results, hashes)


def bytes_to_read(checks: Sequence[Check]) -> int:
    """Bytes that the checks read, with the values that they need."""
    nodes = all_nodes([check.node for check in checks])
    return sum(tensor.spec.nbytes for node in nodes for tensor in node.reads)


def tasks_of(checks: Sequence[Check], max_memory: int) -> list[Task]:
    """The checks in the order of the files, each behind the values that it needs.

    Raises:
        CtcliError: the largest job needs more memory.
    """
    tasks = node_tasks(check.node for check in sorted(checks, key=lambda check: check.place))
    if too_little := memory_problem(tasks, max_memory):
        raise CtcliError(too_little, MORE_MEMORY)
    return tasks


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
    tasks = tasks_of(checks, max_memory)
    nodes = {task.node.key: task.node for task in tasks if task.node}
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
