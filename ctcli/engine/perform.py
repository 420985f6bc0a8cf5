"""Doing one job: a function that any thread, or any process with the same plan, can call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ctcli.engine.graph import Graph
from ctcli.engine.jobs import CopyJob, Job, NodeJob
from ctcli.errors import CtcliError, os_errors_of
from ctcli.lazy.evaluate import Evaluator
from ctcli.lazy.nodes import ROWS, Axis, ContentError, Node, NonFiniteError
from ctcli.lazy.refusals import refusal
from ctcli.lazy.stacks import compute_stack, stacks
from ctcli.lazy.tensors import SourceFile, Stored
from ctcli.storage.rows import (
    Buffer,
    as_bytes,
    read_columns,
    read_matrices,
    read_rows,
    write_columns,
    write_rows,
)
from ctcli.storage.transfer import copy_bytes, write_pieces
from ctcli.units import Advance

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block, Blocks

_buffers = threading.local()


class Cancelled(BaseException):
    """Ends a job after another one failed or a signal came."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a job.

    Attributes:
        job: the job.
        nbytes: bytes written.
        measures: what was measured on each of its blocks, in order.
        value: what it adds to a value, for a node that is one.
    """

    job: Job
    nbytes: int = 0
    measures: Sequence[Sequence[Any]] = ()
    value: Block | None = None


class Outputs(Protocol):
    """The output files while they are written."""

    def descriptor(self, name: str) -> int:
        """A descriptor to write a file by, which has its full length."""

    def link(self, name: str, source: Path, /) -> bool:
        """Make a file a link to another; False where that cannot be done."""


def perform(
    jobs: Sequence[Job],
    graph: Graph,
    values: Mapping[str, Block],
    outputs: Outputs,
    advance: Advance = lambda _: None,
) -> list[Done]:
    """Do some jobs, one after the other; files that they read are opened once.

    Args:
        jobs: what to do.
        graph: the nodes and files that they name.
        values: what their nodes read whole, by key.
        outputs: the files that they write.
        advance: told of bytes written and downloaded; may raise to end the job.

    Raises:
        CtcliError: reading or writing failed, or a weight is not finite or not what was declared.
    """
    write, found = _Writer(graph, outputs, advance), dict[Job, Done]()
    of_nodes = {graph.nodes[job.key]: job for job in jobs if isinstance(job, NodeJob)}
    with SourceReader(advance) as reader:
        for stack in stacks(of_nodes) if len(of_nodes) > 1 else ():
            if len(stack) > 1:
                found |= _perform_stack({node: of_nodes[node] for node in stack}, reader, write)
        return [found.get(job) or _perform(job, values, reader, write) for job in jobs]


def _perform_stack(
    jobs: Mapping[Node, NodeJob], reader: SourceReader, write: _Writer
) -> dict[Job, Done]:
    """Do all of some nodes that are alike; nothing if one is at fault, which is to be found."""
    reader.reuse()
    try:
        computed = compute_stack(reader, [*jobs])
    except NonFiniteError:
        return {}
    written = write.together((node, found) for node, (found, _) in zip(jobs, computed, strict=True))
    return {
        job: Done(job, nbytes, [measured])
        for job, nbytes, (_, measured) in zip(jobs.values(), written, computed, strict=True)
    }


def _perform(job: Job, values: Mapping[str, Block], reader: SourceReader, write: _Writer) -> Done:
    graph, outputs = write.graph, write.outputs
    if isinstance(job, CopyJob):
        return _copy(job, graph, outputs, write.advance, reader)
    for target in graph.targets.get(job.key, ()) if job.start == job.stop else ():
        outputs.descriptor(target.file)  # nothing is written, and there is a file
    return compute(job, graph.nodes[job.key], values, reader, write)


def compute(
    job: NodeJob,
    node: Node,
    values: Mapping[str, Block],
    reader: SourceReader,
    write: _Writer | None = None,
) -> Done:
    """Do a job of a node; without `write`, only what was measured on its blocks is kept."""
    nbytes, measures = 0, []
    reader.reuse()
    evaluator = Evaluator(reader, values)
    try:
        if node.is_value:
            return Done(job, value=evaluator.value(node, job.start, job.stop))
        for start, found, measured in evaluator.compute(node, job.start, job.stop):
            measures += measured
            if write:
                nbytes += write(node, start, found)
    except NonFiniteError as error:
        raise refusal(node, evaluator, str(error)) from error
    except ContentError as error:
        raise CtcliError(f"{node.module}: {error}.", error.hint) from error
    return Done(job, nbytes, measures)


def _copy(
    job: CopyJob, graph: Graph, outputs: Outputs, advance: Advance, reader: SourceReader
) -> Done:
    copy, file = graph.copy_at(job.file, job.offset), graph.files[job.file]
    if copy is None:
        outputs.descriptor(job.file)
        return Done(job)
    if graph.links(file) and outputs.link(job.file, copy.source.fetch(advance)):
        advance(file.size)
        return Done(job, job.nbytes)
    target = outputs.descriptor(job.file)
    start = copy.start + job.offset - copy.offset
    source = reader.descriptor(copy.source)
    with os_errors_of(job.file, "writing"), reader.whole(copy.source):
        copy_bytes(source, start, target, job.offset, job.nbytes, advance)
    return Done(job, job.nbytes)


@dataclass(frozen=True)
class _Writer:
    """Writes what a node yields to the files that take it."""

    graph: Graph
    outputs: Outputs
    advance: Advance

    def __call__(self, node: Node, start: int, found: Blocks) -> int:
        """Write the outputs that begin at a row (column) of the node; returns how many bytes."""
        nbytes = 0
        for target in self.graph.targets[node.key]:
            output = node.outputs[target.output]
            if output.is_whole and start:
                continue
            write = write_rows if output.is_whole or node.axis == ROWS else write_columns
            place = 0 if output.is_whole else node.place(target.output, node.axis, start)
            descriptor = self.outputs.descriptor(target.file)
            with os_errors_of(target.file, "writing"):
                written = write(descriptor, target.offset, output.spec, place, found[target.output])
            self.advance(written)
            nbytes += written
        return nbytes

    def together(self, computed: Iterable[tuple[Node, Blocks]]) -> list[int]:
        """Write all outputs of some nodes; returns how many bytes each has."""
        pieces: dict[str, list[tuple[int, memoryview]]] = {}
        sizes = []
        for node, found in computed:
            nbytes = 0
            for target in self.graph.targets[node.key]:
                content = as_bytes(found[target.output])
                pieces.setdefault(target.file, []).append((target.offset, content))
                nbytes += content.nbytes
            sizes.append(nbytes)
        for name, of_file in pieces.items():
            descriptor = self.outputs.descriptor(name)
            with os_errors_of(name, "writing"):
                write_pieces(descriptor, of_file)
            self.advance(sum(content.nbytes for _, content in of_file))
        return sizes


class SourceReader:
    """Reads stored matrices for jobs, one after the other, through buffers of their thread.

    Args:
        advance: told of bytes downloaded; may raise to end the job.
        writes: whether the jobs write; else it is told of the bytes that are read, too.
    """

    def __init__(self, advance: Advance, writes: bool = True) -> None:
        self._advance = advance
        self._writes = writes
        self._descriptors: dict[SourceFile, int] = {}
        self._slots: dict[tuple[SourceFile, int], int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reuse(self) -> None:
        """Begin with another job: what was read before is not needed any more."""
        self._slots.clear()

    def read(self, tensor: Stored, axis: Axis, start: int, stop: int) -> Block:
        """See `lazy.evaluate.Reader`."""
        self._advance(0)
        read = read_rows if axis == ROWS else read_columns
        slot = self._slots.setdefault((tensor.file, tensor.start), len(self._slots))
        descriptor = self.descriptor(tensor.file)
        with os_errors_of(tensor.file.name, "reading"), self.whole(tensor.file):
            block = read(descriptor, tensor, start, stop, _buffer(slot))
        if not self._writes:
            self._advance(block.nbytes)
        return block

    def read_stack(self, tensors: Sequence[Stored]) -> Block:
        """See `lazy.stacks.StackReader`."""
        self._advance(0)
        file = tensors[0].file
        descriptor = self.descriptor(file)
        with os_errors_of(file.name, "reading"), self.whole(file):
            return read_matrices(descriptor, tensors, _buffer(0))

    @contextmanager
    def whole(self, file: SourceFile) -> Iterator[None]:
        """Say so where a file ends too early."""
        try:
            yield
        except EOFError as error:
            what = "SRC" if self._writes else "the checkpoint"
            raise CtcliError(
                f"{file.name}: it became shorter while it was being read.",
                f"Leave {what} alone while ctcli runs, then run the same command again.",
            ) from error

    def descriptor(self, file: SourceFile) -> int:
        """Open a file once; a file on a hub is fetched first."""
        if file not in self._descriptors:
            path = file.fetch(self._advance)
            with os_errors_of(file.name, "reading"):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, descriptor)
            self._descriptors[file] = descriptor
        return self._descriptors[file]


def _buffer(slot: int) -> Buffer:
    """This thread's buffer for the tensor of a job that is the `slot`-th it reads."""
    found: list[Buffer] = _buffers.__dict__.setdefault("slots", [])
    while len(found) <= slot:
        found.append(Buffer())
    return found[slot]
