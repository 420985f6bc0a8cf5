"""What a run will do and need, known before it starts: files, bytes, disk, memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

from ctcli.checkpoint.value import Preparation
from ctcli.engine.graph import Graph
from ctcli.engine.jobs import MORE_MEMORY, Task, held_at_once, make_tasks, memory_problem
from ctcli.engine.supply import Turns
from ctcli.errors import CtcliError
from ctcli.lazy.stacks import STACK_MEMORY
from ctcli.lazy.tensors import SourceFile
from ctcli.storage.destination import check_beside, check_sources, device_of, free_bytes
from ctcli.storage.journal import ErrorSums, Journal
from ctcli.storage.layout import Layout, OutputFile, sources_of
from ctcli.storage.leftover import Leftover, look_for_leftover


@dataclass(frozen=True)
class Settings:
    """How to run, as opposed to what to write.

    Attributes:
        workers: threads.
        max_memory: bytes that all jobs under way may hold together.
        overwrite: replace a DST with content.
        fsync: put every file on the disk before it is called complete.
        link: hard-link files that are taken over whole.
        max_disk: bytes that fetched and written files may occupy together; None: no limit.
        keeps: whether the output stays on this disk, rather than going to a hub only.
    """

    workers: int
    max_memory: int
    overwrite: bool = False
    fsync: bool = False
    link: bool = False
    max_disk: int | None = None
    keeps: bool = True


@dataclass(frozen=True)
class Plan:
    """A layout, and what can be known about running it before it runs.

    Attributes:
        layout: what to write.
        destination: DST.
        settings: how.
        key: identifies the run whose leftover can be continued.
        leftover: what such a run left behind.
    """

    layout: Layout
    destination: Path
    settings: Settings
    key: str
    leftover: Leftover

    @cached_property
    def fetch_bytes(self) -> int:
        """Bytes to download, as long as nothing was."""
        whole = sum(s.fetch_bytes for s in self.sources if not s.is_streamed)
        return whole + sum(turns.fetch_bytes for turns in self.turns)

    @property
    def write_bytes(self) -> int:
        """Bytes to write (or link); what an earlier run wrote does not count."""
        return sum(file.size for file in self.files) - self.continued_bytes

    @property
    def continued_bytes(self) -> int:
        """Bytes of incomplete files that an earlier run wrote."""
        return sum(part.nbytes for part in self.leftover.journal.parts.values())

    @property
    def peak_memory(self) -> int:
        """Upper bound in bytes for what the jobs under way hold together."""
        left, total = self.settings.workers, 0
        small = [task for tasks in self.tasks for task in tasks if task.memory < STACK_MEMORY // 2]
        stack = held_at_once(small) if small else 0
        for task in self.largest_tasks:
            total += max(task.memory, stack) * (count := min(left, task.count))
            left -= count
        return min(self.settings.max_memory, total)

    @cached_property
    def largest_tasks(self) -> list[Task]:
        """Those whose jobs hold most; there is one for each worker."""
        every = (task for tasks in self.tasks for task in tasks)
        return heapq.nlargest(self.settings.workers, every, key=attrgetter("memory"))

    @cached_property
    def peak_disk(self) -> int:
        """Bytes that output and streamed source files occupy together, at least at one moment."""
        sizes = {file.name: 0 if self.links(file) else file.size for file in self.files}
        turns, closing = self.turns
        leaving = [f.name for f in self.layout.files if f.is_shard and not self.settings.keeps]
        kept = {name for task in closing.tasks for name in task.files}
        kept |= {file.name for file in self.complete} - {*leaving}
        sizes |= {file.name: file.size for file in self.complete}
        first, *later = turns.disk(sizes, leaving, self.begun)
        first += sum(file.size for file in self.complete if file.name in leaving)
        return max([first, *later]) + sum(sizes[name] for name in kept)

    @property
    def complete(self) -> list[OutputFile]:
        """The files that an earlier run completed and that lie on this disk."""
        here = self.leftover.journal.complete.keys() - self.leftover.elsewhere
        return [file for file in self.layout.all_files if file.name in here]

    @property
    def begun(self) -> frozenset[str]:
        """The files of which an earlier run wrote parts."""
        return frozenset(part.file for part in self.leftover.journal.parts.values())

    @cached_property
    def graphs(self) -> tuple[Graph, Graph]:
        """The pending files and their nodes: the closing ones behind all others."""
        files, closing = self.layout.files, self.layout.closing
        link = self.settings.link
        return Graph.of(self.pending(files), link), Graph.of(self.pending(closing), link)

    @cached_property
    def tasks(self) -> tuple[list[Task], list[Task]]:
        """How the files of each graph are written."""
        done = self.leftover.journal.parts.keys()
        files, closing = self.graphs
        return make_tasks(files, done), make_tasks(closing, done)

    @cached_property
    def turns(self) -> tuple[Turns, Turns]:
        """When tasks can be done."""
        files, closing = self.tasks
        streams = any(file.is_streamed for file in self.sources)
        return Turns(files, streams), Turns(closing, streams)

    @cached_property
    def sources(self) -> list[SourceFile]:
        """The source files that the pending files are made of."""
        if not self.leftover.journal.complete:
            return [*self.layout.sources]
        return sources_of(self.files)

    @cached_property
    def files(self) -> list[OutputFile]:
        """The files still to be written."""
        return self.pending(self.layout.all_files)

    def pending(self, files: Iterable[OutputFile]) -> list[OutputFile]:
        """Those of `files` that an earlier run did not complete, largest first."""
        todo = (file for file in files if file.name not in self.leftover.journal.complete)
        return sorted(todo, key=lambda file: -file.size)

    def links(self, file: OutputFile) -> bool:
        """Whether `file` will be a hard link, as far as one can tell beforehand."""
        source = file.verbatim if self.settings.link else None
        if source is None or source.is_streamed:  # a link outlives what was streamed
            return False
        return device_of(self.destination) == device_of(source.location)


def key_of(layout: Layout, settings: Settings) -> str:
    """Identifies the run whose leftover can be continued."""
    # Files that a run linked, or did not sync, are not what another one promises.
    return f"{layout.key} link={settings.link} fsync={settings.fsync}"


def make_plan(
    layout: Layout,
    destination: Path,
    settings: Settings,
    elsewhere: Mapping[str, ErrorSums] | None = None,
) -> Plan:
    """Compare a layout with what an earlier run left of it. Writes nothing.

    Args:
        layout: what to write.
        destination: DST.
        settings: how.
        elsewhere: files that are on a hub and need not be made again, with their errors.
    """
    sizes = {file.name: file.size for file in layout.all_files}
    key = key_of(layout, settings)
    leftover = look_for_leftover(destination, key, sizes, elsewhere or {}, layout.form)
    if leftover.is_published and not settings.keeps:
        # DST is a directory that an earlier run made; this one's output goes to a hub.
        leftover = Leftover(Journal({}, {}), 0)
    plan = Plan(layout, destination, settings, key, leftover)
    if settings.max_disk is not None and settings.max_disk < plan.peak_disk:
        # What an earlier run began lies there from the start; without it, there may be room.
        plan = replace(plan, leftover=leftover.without_parts())
    return plan


def check_resources(plan: Plan, preparations: Iterable[Preparation] = ()) -> None:
    """Refuse a plan that DST, the memory budget or the free disk space cannot hold.

    Args:
        plan: what to do.
        preparations: what is done before.

    Raises:
        CtcliError: DST must not be replaced; or lists every file system that is too small, and the
            budget.
    """
    if plan.leftover.is_published:
        return
    if plan.destination.exists():
        plan.layout.form.check(plan.destination, plan.settings.overwrite)
    check_sources(plan.destination, (source.location for source in plan.sources))
    check_beside(plan.destination, plan.layout.beside, plan.settings.overwrite)
    problems = [*_memory_problems(plan, preparations)]
    hints = [MORE_MEMORY for _ in problems]
    least = plan.peak_disk
    if plan.settings.max_disk is not None and plan.settings.max_disk < least:
        problems.append(f"--max-disk: at least {least:,} bytes are needed at some moment.")
        hints.append("Give a larger --max-disk.")
    sources = [source for source in plan.sources if not source.is_streamed]
    there = plan.leftover.reclaimable + sum(file.size for file in plan.complete)
    needs = [(plan.destination, least - there)]
    needs += [(source.location, source.fetch_bytes) for source in sources]
    needed: dict[int, tuple[Path, int]] = {}
    for path, nbytes in needs:
        first, before = needed.setdefault(device := device_of(path), (path, 0))
        needed[device] = (first, before + nbytes)
    for path, nbytes in needed.values():
        free = free_bytes(path)
        if nbytes > free:
            problems.append(f"{path}: {nbytes:,} bytes are needed there, {free:,} are free.")
            hints.append("Free some space, or choose a DST on another disk.")
    if problems:
        raise CtcliError(problems, " ".join(dict.fromkeys(hints)))


def check_budget(plan: Plan, preparations: Iterable[Preparation]) -> None:
    """Refuse a plan that the memory budget cannot hold, as `check_resources` does.

    Raises:
        CtcliError: says what is needed.
    """
    if problems := [*_memory_problems(plan, preparations)]:
        raise CtcliError(problems, MORE_MEMORY)


def _memory_problems(plan: Plan, preparations: Iterable[Preparation]) -> Iterator[str]:
    if too_little := memory_problem(plan.largest_tasks, plan.settings.max_memory):
        yield too_little
    for each in preparations:
        if each.memory > plan.settings.max_memory:
            yield f"--max-memory: {each.title} needs {each.memory:,} bytes."
