"""How a layout is cut into jobs: data that can be told apart, and done in another process."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.cli.recipes import make_steps
from ctcli.engine.graph import Graph
from ctcli.engine.jobs import CopyJob, Job, NodeJob, Task, in_turn, make_tasks
from ctcli.engine.perform import Done, perform
from ctcli.lazy.cut import cut
from ctcli.lazy.nodes import Node
from ctcli.lazy.values import Values
from ctcli.storage.journal import JobPlace
from ctcli.storage.layout import OutputFile, lay_out
from ctcli.storage.opening import open_checkpoint
from tests.helpers.llamas import SMALL, make_model, save_hf

ROOT = Path(__file__).parent.parent.parent
STEPS: dict[str, tuple[dict[str, Any], ...]] = {
    "v0": ({"use": "export-bin", "version": 0},),
    "v2": ({"use": "export-bin", "version": 2},),
    "W4A16": ({"use": "quantize", "scheme": "W4A16", "group_size": 64},),
    "NVFP4A16": ({"use": "quantize", "scheme": "NVFP4A16"},),
    "rotated": (
        {"use": "rotate", "rotations": ["R1", "R2", "R4"]},
        {"use": "quantize", "strategy": "tensor", "observer": "mse"},
    ),
}
Jobs = list[tuple[Task, Job]]


def files_of(source: str, name: str) -> list[OutputFile]:
    """The output of some steps; the same in every process."""
    value: Made = open_checkpoint(source)
    for _, step in make_steps(STEPS[name]):
        assert isinstance(value, Checkpoint)
        value, _ = step.rewrite(value)
    return [*lay_out(value, "a.bin").all_files]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with matrices of 6 million values, which are two jobs each."""
    sizes = replace(SMALL, dim=1024, hidden_dim=5632, n_heads=8, vocab_size=6000)
    return str(save_hf(tmp_path_factory.mktemp("jobs") / "source", make_model(sizes)))


@pytest.fixture(scope="module", params=STEPS)
def files(request: pytest.FixtureRequest, source: str) -> list[OutputFile]:
    return files_of(source, request.param)


def jobs_of(tasks: list[Task]) -> Jobs:
    return [(task, job) for task in tasks for job in task.jobs()]


def places_of(jobs: Jobs) -> list[tuple[str, JobPlace]]:
    """File and place of all jobs that write something."""
    return [
        (task.files[0], job.place)
        for task, job in jobs
        if task.files and not (isinstance(job, CopyJob) and not job.nbytes)
    ]


def test_no_two_jobs_have_the_same_place(files: list[OutputFile]) -> None:
    places = places_of(jobs_of(make_tasks(Graph.of(files))))
    assert len(set(places)) == len(places)
    assert any(start for _, (key, start) in places if key), "no matrix was more than one job"


def test_done_jobs_are_left_out_and_no_others(files: list[OutputFile]) -> None:
    places = places_of(jobs_of(make_tasks(Graph.of(files))))
    done, todo = places[::2], places[1::2]
    assert places_of(jobs_of(make_tasks(Graph.of(files), done=done))) == todo


def test_values_that_nothing_needs_any_more_are_not_computed(files: list[OutputFile]) -> None:
    tasks = make_tasks(Graph.of(files))
    rest = make_tasks(Graph.of(files), done=places_of(jobs_of(tasks)))
    assert all(task.files for task in rest)


def test_values_come_before_what_needs_them(files: list[OutputFile]) -> None:
    known: set[Node | None] = set()
    for task in make_tasks(Graph.of(files)):
        assert known.issuperset(task.needs)
        known.add(task.node)


@pytest.mark.parametrize("name", ["W4A16", "NVFP4A16"])
@pytest.mark.parametrize("width", [1, 2, 4, 100])
def test_neighbouring_jobs_write_different_files(pylm: Path, name: str, width: int) -> None:
    tasks = make_tasks(Graph.of(files_of(str(pylm), name)))
    found = [*in_turn(tasks, width)]
    assert Counter(found) == Counter(jobs_of(tasks))
    writing = [task.files[0] for task, _ in found if task.files]
    begun = list(dict.fromkeys(writing))
    last = {file: i for i, file in enumerate(writing)}
    for i, file in enumerate(begun[width:]):
        assert sum(last[other] > writing.index(file) for other in begun[: i + width]) < width
    if width > 1:
        until = min(last[file] for file in begun[:width])
        assert all(one != other for one, other in itertools.pairwise(writing[:until]))


def test_a_value_of_the_last_file_waits_until_the_first_is_written(pylm: Path) -> None:
    found = [*in_turn(make_tasks(Graph.of(files_of(str(pylm), "NVFP4A16"))), 2)]
    written = [i for i, (task, _) in enumerate(found) if task.node and task.files]
    values = [i for i, (task, _) in enumerate(found) if not task.files]
    assert written[0] < values[-1]


class Folder:
    """Output files in a folder, each created at full length with what is known of it."""

    def __init__(self, folder: Path, files: list[OutputFile]) -> None:
        self._folder, self._files = folder, {file.name: file for file in files}
        self._open: dict[str, int] = {}

    def descriptor(self, name: str) -> int:
        if name not in self._open:
            path, file = self._folder / name, self._files[name]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = bytearray(file.size)
                for offset, known in ((0, file.head), *((k.offset, k.content) for k in file.known)):
                    content[offset : offset + len(known)] = known
                path.write_bytes(content)
            self._open[name] = os.open(path, os.O_RDWR)
        return self._open[name]

    def link(self, _name: str, _source: Path, /) -> bool:
        return False


def all_jobs(tasks: list[Task], do: Callable[[Job, Values], Done]) -> Iterator[Done]:
    """Do all jobs in order, and keep the values that they find."""
    values = Values()
    for task in tasks:
        if task.node:
            values.expect(task.node, task.count)
    for task, job in jobs_of(tasks):
        done = do(job, values)
        if task.node and isinstance(job, NodeJob):
            values.used(task.node)
            if done.value is not None:
                values.add(task.node, job.start, done.value, task.count)
        yield done


PROGRAM = """
import pickle, sys
from pathlib import Path
from ctcli.engine.graph import Graph
from ctcli.engine.perform import perform
from tests.engine.test_jobs import Folder, files_of
files = files_of(*sys.argv[1:3])
graph, folder = Graph.of(files), Folder(Path(sys.argv[3]), files)
while True:
    job, values = pickle.load(sys.stdin.buffer)
    pickle.dump(perform([job], graph, values, folder)[0], sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


@pytest.mark.parametrize("name", STEPS)
def test_another_process_does_every_job_to_the_same_bytes(
    name: str, pylm: Path, tmp_path: Path
) -> None:
    """It gets jobs and values by pickle, and makes the same plan of the same source itself."""
    files = files_of(str(pylm), name)
    graph, tasks = Graph.of(files), make_tasks(Graph.of(files))
    here = Folder(tmp_path / "here", files)
    found = [*all_jobs(tasks, lambda job, values: perform([job], graph, values.known, here)[0])]

    command = [sys.executable, "-c", PROGRAM, str(pylm), name, str(tmp_path / "there")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        requests, answers = other.stdin, other.stdout
        assert requests
        assert answers

        def send(job: Job, values: Values) -> Done:
            pickle.dump((job, values.known), requests)
            requests.flush()
            done = pickle.load(answers)
            assert isinstance(done, Done)
            return done

        there = [*all_jobs(tasks, send)]
        other.kill()
    assert [done.job for done in there] == [done.job for done in found]
    if name == "rotated":
        kinds = {(type(d.job), d.value is not None, any(d.measures)) for d in found}
        of_node = {(NodeJob, True, False), (NodeJob, False, True), (NodeJob, False, False)}
        assert kinds == {(CopyJob, False, False), *of_node}
    for file in files:
        content = (tmp_path / "here" / file.name).read_bytes()
        assert content == (tmp_path / "there" / file.name).read_bytes()
        assert len(content) == file.size


def test_how_a_node_is_cut_knows_nothing_of_workers(files: list[OutputFile]) -> None:
    nodes = Graph.of(files).nodes.values()
    assert nodes
    for node in nodes:
        how = cut(node)
        assert how.job % how.window == how.window % how.band == 0 or how.length <= how.job
        spans = [*how.spans()]
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert len(spans) == how.jobs
