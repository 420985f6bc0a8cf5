"""The jobs of a run: plain data that any process with the same plan can do.

How a run is cut into jobs depends on the layout alone, never on the number of workers. Jobs are
made as they are needed: what is kept is a task for each node and each run of bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ctcli.engine.graph import Graph
from ctcli.lazy.cut import Cut, cut
from ctcli.lazy.nodes import Node, all_nodes
from ctcli.lazy.stacks import STACK_MEMORY
from ctcli.lazy.tensors import SourceFile
from ctcli.storage.journal import JobPlace
from ctcli.storage.layout import Copy
from ctcli.storage.transfer import BUFFER_BYTES

MORE_MEMORY = "Give a larger --max-memory."
# A file is copied by several threads at once, in pieces of at most this many bytes.
_COPY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Take over bytes of a source file.

    Attributes:
        file: the output file.
        offset: where they go; the layout says where they come from.
        nbytes: how many; 0 for a file whose bytes are known.
    """

    file: str
    offset: int
    nbytes: int

    @property
    def place(self) -> JobPlace:
        """Tells it from the file's other jobs."""
        return "", self.offset


@dataclass(frozen=True, slots=True)
class NodeJob:
    """Compute some rows (columns) of a node: of its outputs, or of its value.

    Attributes:
        key: the node's.
        start: the first.
        stop: the one behind the last.
    """

    key: str
    start: int
    stop: int

    @property
    def place(self) -> JobPlace:
        """Tells it from other jobs of its file."""
        return self.key, self.start


Job = CopyJob | NodeJob


@dataclass(eq=False, slots=True)
class Task:
    """Jobs that read the same tensors and write the same files. Like a node, it is not changed.

    Attributes:
        files: names of the output files, the first of which keeps the journal of it.
        node: what is computed; None: bytes are taken over.
        copy: what is taken over; None: nothing, as the file's bytes are known.
        whole: whether it is taken over in one piece.
        done: places of jobs that need not be done again.
        cut: how the node is cut.
    """

    files: tuple[str, ...]
    node: Node | None = None
    copy: Copy | None = None
    whole: bool = False
    done: frozenset[JobPlace] = frozenset()
    cut: Cut | None = field(init=False)
    memory: int = field(init=False)
    """Bytes that each of its jobs holds while it runs."""

    def __post_init__(self) -> None:
        self.cut = cut(self.node) if self.node else None
        self.memory = self.cut.memory if self.cut else BUFFER_BYTES

    def jobs(self) -> Iterator[Job]:
        """The jobs that are to be done, in order."""
        return (job for job in self._every() if job.place not in self.done)

    def _every(self) -> Iterator[Job]:
        if self.node and self.cut:
            for start, stop in self.cut.spans():
                yield NodeJob(self.node.key, start, stop)
        elif self.copy is None:
            yield CopyJob(self.files[0], 0, 0)
        else:
            for piece in self.copy.split(self.copy.nbytes or 1 if self.whole else _COPY_BYTES):
                yield CopyJob(self.files[0], piece.offset, piece.nbytes)

    @property
    def count(self) -> int:
        """How many jobs are to be done."""
        return sum(1 for _ in self.jobs()) if self.done or not self.cut else self.cut.jobs

    @property
    def work(self) -> int:
        """Bytes that each of its jobs reads, about."""
        if self.node and self.cut:
            return sum(tensor.spec.nbytes for tensor in self.node.reads) // self.cut.jobs
        return self.copy.nbytes if self.copy else 0

    @property
    def needs(self) -> tuple[Node, ...]:
        """The values that must be known before."""
        return self.node.values if self.node else ()

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """The files that it reads."""
        if self.node:
            return tuple(dict.fromkeys(tensor.file for tensor in self.node.reads))
        return (self.copy.source,) if self.copy else ()

    def reads(self) -> Iterator[tuple[SourceFile, range]]:
        """The bytes that its jobs read, and perhaps some between them."""
        if self.copy:
            for job in self.jobs():
                assert isinstance(job, CopyJob)
                start = self.copy.start + job.offset - self.copy.offset
                yield self.copy.source, range(start, start + job.nbytes)
        for tensor in self.node.reads if self.node else ():
            yield tensor.file, range(tensor.start, tensor.start + tensor.spec.nbytes)


def make_tasks(graph: Graph, done: Collection[tuple[str, JobPlace]] = ()) -> list[Task]:
    """What is to be done for the files of a graph, file by file; values before what needs them.

    Args:
        graph: the files and nodes.
        done: file and place of jobs that need not be done again.
    """
    places: dict[str, set[JobPlace]] = {}
    for written, place in done:
        places.setdefault(written, set()).add(place)
    tasks: list[Task] = []
    made: set[Node] = set()
    for name, file in graph.files.items():
        kept = frozenset(places.get(name, ()))
        whole = graph.links(file)
        copies = [Task((name,), copy=copy, whole=whole, done=kept) for copy in file.copies]
        if not copies and not file.computed:
            copies = [Task((name,))]
        tasks += [task for task in copies if not kept or task.count]
        for node in file.nodes:
            files = graph.homes[node]
            if files[0] != name:
                continue
            task = Task(files, node, done=kept)
            if kept and not task.count:
                continue
            if node.values:
                tasks += [Task((), value) for value in all_nodes(node.values, made)]
            tasks.append(task)
    return tasks


def node_tasks(nodes: Iterable[Node]) -> list[Task]:
    """Nodes that write nothing, each behind the values that it needs."""
    return [Task((), node) for node in all_nodes(nodes)]


def held_at_once(tasks: Collection[Task]) -> int:
    """Bytes that jobs hold which one thread does together: one of them, or a stack of some."""
    most, total = max(task.memory for task in tasks), sum(task.memory for task in tasks)
    return max(most, min(total, STACK_MEMORY))


def memory_problem(tasks: Iterable[Task], max_memory: int) -> str | None:
    """Why so many bytes cannot hold the largest of the tasks' jobs; None: they can."""
    largest = max((task.memory for task in tasks), default=0)
    too_little = f"--max-memory: the largest job needs {largest:,} bytes."
    return too_little if largest > max_memory else None


def in_turn(tasks: Iterable[Task], width: int) -> Iterator[tuple[Task, Job]]:
    """Jobs on `width` files in turn, until these are done: threads that write one file queue up.

    Values come right before what needs them.
    """
    waiting = deque(_by_file(tasks))
    current: deque[Iterator[list[tuple[Task, Job]]]] = deque()
    while current or waiting:
        while waiting and len(current) < width:
            current.append(_together(waiting.popleft()))
        queue = current.popleft()
        found = next(queue, None)
        if found is not None:
            yield from found
            current.append(queue)


def _by_file(tasks: Iterable[Task]) -> list[list[Task]]:
    """Tasks by the first file that they write, each behind the values before it."""
    queues: dict[str, list[Task]] = {}
    values: list[Task] = []
    for task in tasks:
        values.append(task)
        if task.files:
            queues.setdefault(min(task.files), []).extend(values)
            values = []
    return [*queues.values(), values]


def _together(tasks: Sequence[Task]) -> Iterator[list[tuple[Task, Job]]]:
    """Each job that writes, with the jobs for values before it."""
    values: list[tuple[Task, Job]] = []
    for task in tasks:
        for job in task.jobs():
            values.append((task, job))
            if task.files:
                yield values
                values = []
    yield from ([value] for value in values)
