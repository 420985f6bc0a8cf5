"""Jobs on threads: small ones in batches, each once, after the values that it needs."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from pathlib import Path

import pytest

from ctcli.engine.graph import Graph
from ctcli.engine.jobs import Job, Task, held_at_once, in_turn, make_tasks
from ctcli.engine.perform import Done, perform
from ctcli.engine.schedule import Schedule
from ctcli.lazy.values import Values
from tests.engine.test_jobs import Folder, files_of, jobs_of
from tests.helpers.llamas import SMALL, make_model, save_hf


class Batches:
    """Does jobs, and notes what one thread did at once."""

    def __init__(self, tasks: list[Task], folder: Folder, graph: Graph, max_memory: int) -> None:
        self.found: list[tuple[Task, Done]] = []
        self.starts = 0
        self._graph, self._folder = graph, folder
        self._lock = threading.Lock()
        jobs = in_turn(tasks, 2)
        schedule = Schedule(tasks, jobs, 2, max_memory, self._do)
        while not schedule.is_over:
            before = {*schedule.running}
            schedule.start()
            self.starts += len({*schedule.running} - before)
            held = sum(held_at_once(batch) for batch in schedule.running.values())
            assert held <= max_memory
            wait(schedule.running, return_when=FIRST_COMPLETED)
            self.found += schedule.collect()
        schedule.stop()

    def _do(self, jobs: Sequence[Job], values: Values) -> list[Done]:
        with self._lock:  # the folder is for one thread
            return perform(jobs, self._graph, values.known, self._folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of many small matrices in one file."""
    sizes = replace(SMALL, dim=128, hidden_dim=256, n_heads=2, n_layers=8)
    return str(save_hf(tmp_path_factory.mktemp("schedule") / "source", make_model(sizes)))


@pytest.mark.parametrize("name", ["W4A16", "NVFP4A16", "rotated"])
def test_small_jobs_are_done_in_batches_and_each_once(
    name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(source, name)
    graph, tasks = Graph.of(files), make_tasks(Graph.of(files))
    every = jobs_of(tasks)
    least = max(task.memory for task in tasks)
    for max_memory, folder in ((1 << 40, "much"), (least, "little")):
        made = Batches(tasks, Folder(tmp_path / folder, files), graph, max_memory)
        assert Counter((task, done.job) for task, done in made.found) == Counter(every)
        if folder == "much":
            assert 2 * made.starts < len(every), "small jobs went one by one"
        # Values of some that are looked at are not known yet.
        monkeypatch.setattr("ctcli.engine.schedule._BATCH_JOBS", 16)
    for file in files:
        much, little = ((tmp_path / each / file.name).read_bytes() for each in ("much", "little"))
        assert much == little
