"""The engine: runs a plan on threads, within a byte budget, and publishes the result."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from ctcli.engine.jobs import Job
from ctcli.engine.ledger import Ledger
from ctcli.engine.outbox import Outbox, Publishing, finish
from ctcli.engine.perform import Done, perform
from ctcli.engine.plan import Plan
from ctcli.engine.schedule import Schedule, Stop
from ctcli.engine.supply import Supply
from ctcli.events import Event, Notify
from ctcli.lazy.values import Values
from ctcli.ops.runtime import collect_again
from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import OutputFile
from ctcli.storage.output import OutputFiles
from ctcli.storage.writer import PartialDirectory, open_partial
from ctcli.units import Advance

_OPEN_FILES = 65_536
# After an error, jobs end at their next step; a download that stalls may not come to one.
_GRACE_SECONDS = 3.0


def tell_of_compiling(notify: Notify) -> None:
    """Have a run told, once, that kernels are compiled, should that take more than a second."""
    from ctcli.ops.jit import on_slow_compilation

    on_slow_compilation(lambda: notify(Event("compiling", message="compiling kernels, once")))


def execute(
    plan: Plan,
    advance: Advance,
    publication: Publishing | None = None,
    notify: Notify = lambda _: None,
) -> ErrorSums:
    """Write the plan's files and publish DST.

    Args:
        plan: what to write.
        advance: told of every byte downloaded, written and uploaded, from any thread.
        publication: where on a hub it goes, if it does.
        notify: told of shards that came, were written and went.

    Returns:
        What its node measured, for every module that was computed.

    Raises:
        CtcliError: reading or writing failed; DST is as it was, and the plan can be continued.
    """
    settings, kept = plan.settings, plan.leftover.journal
    _allow_many_files()
    collect_again()
    if any(graph.nodes for graph in plan.graphs):
        tell_of_compiling(notify)
    errors: dict[str, Sequence[float]] = {}
    for measured in kept.complete.values():
        errors |= measured
    with open_partial(
        plan.destination,
        plan.key,
        plan.leftover,
        plan.layout.form,
        fsync=settings.fsync,
        overwrite=settings.overwrite,
    ) as output:
        output.drop_sources([file.location for turns in plan.turns for file in turns.files])
        for which, files in enumerate((plan.layout.files, plan.layout.closing)):
            run = _Run(which, plan, output, advance, publication, notify)
            for file in files:
                if file.name in kept.complete:
                    run.outbox.add(file, kept.complete[file.name])
            for measured in run.write():
                errors |= measured
        end = partial(output.publish, errors) if settings.keeps else _nothing_more
        if publication:
            finish(publication, plan.layout, output.folder, advance, end)
        else:
            end()
        output.clear()
    return errors


def _nothing_more() -> None:
    """The output is on a hub only."""


def _allow_many_files() -> None:
    """Every output file may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Run:
    """One pass over some of the files: the closing ones come last."""

    def __init__(
        self,
        which: int,
        plan: Plan,
        partial: PartialDirectory,
        advance: Advance,
        publication: Publishing | None,
        notify: Notify,
    ) -> None:
        settings, parts = plan.settings, plan.leftover.journal.parts.values()
        self._graph, turns = plan.graphs[which], plan.turns[which]
        self._notify = notify
        self._stop = Stop(advance)
        begun = {part.file for part in parts}
        self._outputs = OutputFiles(self._graph.files, partial, begun, plan.layout.mode)
        own = [part for part in parts if part.file in self._graph.files]
        self._ledger = Ledger(self._graph, turns.tasks, own, partial)
        sizes = {name: file.size for name, file in self._graph.files.items()}
        held = sum(file.size for file in plan.complete)
        self._supply = Supply(turns, sizes, plan.begun, held, settings.max_disk, self._stop)
        self.outbox = Outbox(publication, partial.folder, settings.keeps, self._stop)
        self._schedule = Schedule(
            turns.tasks,
            turns.jobs(settings.workers),
            settings.workers,
            settings.max_memory,
            self._do,
            self._supply.admits,
        )
        self._closing: dict[Future[None], OutputFile] = {}
        self._closer = ThreadPoolExecutor(1)

    def write(self) -> list[ErrorSums]:
        """Do all jobs, or raise the first error. Returns the errors noted of each file."""
        try:
            while not self._is_over:
                self._supply.fetch(self._schedule.current)
                self._schedule.start()
                wait(self._under_way, return_when=FIRST_COMPLETED)
                ended = self._schedule.collect()
                for task, _ in ended:
                    self._supply.done(task)
                for name in self._ledger.note(ended):
                    self._close(self._graph.files[name])
                self._complete()
                for source in self._supply.receive():
                    self._notify(Event("shard_fetched", source.name, source.size))
                self._collect()
                self.outbox.check()
        finally:
            self._stop.stop()
            self._supply.stop()
            self.outbox.stop()
            self._schedule.stop()
            self._closer.shutdown(wait=False)
            if not wait(self._under_way, timeout=_GRACE_SECONDS).not_done:
                self._outputs.abandon()
            self._collect()
        return [self._ledger.errors(name) for name in self._graph.files]

    def _do(self, jobs: Sequence[Job], values: Values) -> list[Done]:
        return perform(jobs, self._graph, values.known, self._outputs, self._stop)

    @property
    def _under_way(self) -> list[Future[Any]]:
        running: list[Future[Any]] = [*self._schedule.running, *self._supply.fetching]
        return [*running, *self._closing, *self.outbox.sending]

    @property
    def _is_over(self) -> bool:
        return self._schedule.is_over and not (self._closing or self.outbox.sending)

    def _close(self, file: OutputFile) -> None:
        """Close a file whose last job is done: on a thread, as a disk may take its time."""
        self._closing[self._closer.submit(self._outputs.close, file.name)] = file

    def _complete(self) -> None:
        """Note the files that are complete, and send them."""
        for future in [future for future in self._closing if future.done()]:
            file = self._closing.pop(future)
            future.result()
            self._ledger.complete(file.name)
            if file.is_shard:
                self._notify(Event("shard_written", file.name, file.size))
            self.outbox.add(file, self._ledger.errors(file.name))

    def _collect(self) -> None:
        """Give up and tell of what has arrived on the hub, after an error of another file, too."""
        for file, freed in self.outbox.collect():
            self._supply.freed(freed)
            self._notify(Event("shard_pushed", file.name, file.size))
