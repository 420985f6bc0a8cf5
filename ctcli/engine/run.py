"""The engine: runs a plan on threads, within a byte budget, and publishes the result."""

from __future__ import annotations

import itertools
import resource
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from ctcli.engine.jobs import Job, spread
from ctcli.engine.outbox import Outbox, Publication, finish
from ctcli.engine.plan import Plan
from ctcli.engine.reductions import Values
from ctcli.engine.supply import Supply, Turns
from ctcli.engine.worker import Worker
from ctcli.events import Event, Notify
from ctcli.storage.journal import Errors, Part
from ctcli.storage.layout import OutputFile
from ctcli.storage.output import OpenOutput
from ctcli.storage.writer import PartialDirectory, open_partial
from ctcli.units import Advance

_OPEN_FILES = 65_536
# How far down the queue a job is looked for whose file no other thread writes just then.
_LOOKAHEAD = 64
# After an error, jobs end at their next step; a download that stalls may not come to one.
_GRACE_SECONDS = 3.0


def execute(
    plan: Plan,
    advance: Advance,
    publication: Publication | None = None,
    notify: Notify = lambda _: None,
) -> Errors:
    """Write the plan's files and publish DST.

    Args:
        plan: what to write.
        advance: told of every byte downloaded, written and uploaded, from any thread.
        publication: where on a hub it goes, if it does.
        notify: told of shards that came, were written and went.

    Returns:
        What its derivation measured, for every module that was computed.

    Raises:
        CtcliError: reading or writing failed; DST is as it was, and the plan can be continued.
    """
    settings, kept = plan.settings, plan.leftover.journal
    _allow_many_files()
    errors = [*kept.complete.values()]
    with open_partial(
        plan.destination,
        plan.key,
        plan.leftover,
        settings.fsync,
        settings.overwrite,
        plan.layout.is_file,
    ) as partial:
        partial.drop_sources([f.location for jobs in plan.jobs for f in Turns(jobs).files])
        for jobs, files in zip(plan.jobs, (plan.layout.files, plan.layout.closing), strict=True):
            run = _Run(jobs, plan.pending(files), plan, partial, advance, publication, notify)
            for file in files:
                if file.name in kept.complete:
                    run.outbox.add(file, kept.complete[file.name])
            errors += run.write()
        end = partial.publish if settings.keeps else partial.discard
        if publication:
            finish(publication, plan.layout, partial.folder, advance, end)
        else:
            end()
    return {module: measured for of_file in errors for module, measured in of_file.items()}


def _allow_many_files() -> None:
    """Every output file may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Run:
    """One pass of the thread pool over some jobs."""

    def __init__(
        self,
        jobs: Sequence[Job],
        files: Iterable[OutputFile],
        plan: Plan,
        partial: PartialDirectory,
        advance: Advance,
        publication: Publication | None,
        notify: Notify,
    ) -> None:
        counts = Counter(name for job in jobs for name in job.files)
        settings = self._settings = plan.settings
        self._notify = notify
        self._complete: set[str] = set()
        turns = Turns(spread(jobs, settings.workers))
        self._waiting = deque(turns.jobs)
        self._values = Values(jobs)
        parts: dict[str, list[Part]] = defaultdict(list)
        for part in plan.leftover.journal.parts.values():
            parts[part.file].append(part)
        self._outputs = {
            file.name: OpenOutput(file, counts[file.name], partial, parts[file.name])
            for file in files
        }
        self._worker = Worker(self._outputs, self._values, partial, settings.link, advance)
        sizes = {name: output.file.size for name, output in self._outputs.items()}
        held = sum(file.size for file in plan.complete)
        self._supply = Supply(
            turns, sizes, plan.begun, held, settings.max_disk, self._worker.advance
        )
        self.outbox = Outbox(publication, partial.folder, settings.keeps, self._worker.advance)
        self._uses_torch = any(job.uses_torch for job in jobs)

    def write(self) -> list[Errors]:
        """Do all jobs, or raise the first error. Returns the errors noted of each file."""
        running: dict[Future[None], Job] = {}
        if self._uses_torch:
            self._worker.prepare(touch=self._settings.max_disk is None)
        pool = ThreadPoolExecutor(self._settings.workers)
        try:
            while self._waiting or running or self.outbox.sending:
                current = [*running.values(), *itertools.islice(self._waiting, 1)]
                fetching = self._supply.fetch(current)
                while job := self._next(running.values()):
                    running[pool.submit(self._worker.do, job)] = job
                under_way: list[Future[Any]] = [*running, *fetching, *self.outbox.sending]
                wait(under_way, return_when=FIRST_COMPLETED)
                for done in [future for future in running if future.done()]:
                    done.result()
                    self._finish(running.pop(done))
                for source in self._supply.receive():
                    self._notify(Event("shard_fetched", source.name, source.size))
                self._collect()
                self.outbox.check()
        finally:
            self._worker.stop()
            self._supply.stop()
            self.outbox.stop()
            under_way = [*running, *self._supply.fetching, *self.outbox.sending]
            if not wait(under_way, timeout=_GRACE_SECONDS).not_done:
                for output in self._outputs.values():
                    output.abandon()
            self._collect()
            pool.shutdown(wait=False, cancel_futures=True)
        return [output.errors() for output in self._outputs.values()]

    def _collect(self) -> None:
        """Give up and tell of what has arrived on the hub, after an error of another file, too."""
        for file, freed in self.outbox.collect():
            self._supply.freed(freed)
            self._notify(Event("shard_pushed", file.name, file.size))

    def _finish(self, job: Job) -> None:
        """Give up the source file that no other job reads, and send the files that are complete."""
        self._supply.done(job)
        for name in job.files:
            output = self._outputs[name]
            # Its last two jobs may both have been done since the last look.
            if output.is_complete and name not in self._complete:
                self._complete.add(name)
                if output.file.is_shard:
                    self._notify(Event("shard_written", name, output.file.size))
                self.outbox.add(output.file, output.errors())

    def _next(self, running: Collection[Job]) -> Job | None:
        """The next waiting job that has all it needs, if the budget admits it now."""
        if len(running) == self._settings.workers:
            return None
        ready = self._ready(frozenset().union(*(job.files for job in running)))
        if ready is None:
            return None
        job = self._waiting[ready]
        if sum(other.memory for other in running) + job.memory > self._settings.max_memory:
            return None
        del self._waiting[ready]
        return job

    def _ready(self, busy: Collection[str]) -> int | None:
        """Which waiting job has all it needs: of the first few, one whose files are not `busy`."""
        first = None
        for i, job in enumerate(self._waiting):
            if not self._supply.admits(job) or (first is not None and i > _LOOKAHEAD):
                break
            if all(map(self._values.knows, job.needs)):
                if job.files.isdisjoint(busy):
                    return i
                first = i if first is None else first
        return first
