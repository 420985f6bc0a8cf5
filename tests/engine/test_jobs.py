"""How a layout is cut into jobs that can be told apart, so that done ones can be left out."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ctcli.engine.jobs import ComputeJob, CopyJob, Job, ReduceJob, make_jobs, spread
from ctcli.lazy.tensors import Matrix, StoredTensor, TensorSpec
from ctcli.rewrites.exporting.export_bin import export_bin
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.quantizing.options import QuantizeOptions
from ctcli.rewrites.quantizing.quantize import quantize
from ctcli.schemes.family import Execution
from ctcli.schemes.weights import largest_magnitude
from ctcli.storage.layout import OutputFile, lay_out
from ctcli.storage.llama2c import lay_out_bin
from ctcli.storage.opening import open_checkpoint
from ctcli.units import parse_bytes
from tests.helpers.llamas import SMALL, make_model, save_hf

Places = list[tuple[str, tuple[int, int]]]


@pytest.fixture(scope="module", params=["v0", "v2", "W4A16", "NVFP4A16"])
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[OutputFile]:
    """Output files with matrices of 6 million values, which are two jobs each."""
    sizes = replace(SMALL, dim=1024, hidden_dim=5632, n_heads=8, vocab_size=6000)
    source = save_hf(tmp_path_factory.mktemp("jobs") / "source", make_model(sizes))
    checkpoint = open_checkpoint(str(source))
    if request.param in ("v0", "v2"):
        chosen = ExportOptions(0 if request.param == "v0" else 2)
        exported, _ = export_bin(checkpoint, chosen)
        return list(lay_out_bin(exported, "a.bin").files)
    options = QuantizeOptions(scheme=(request.param,))
    return list(lay_out(quantize(checkpoint, options)[0]).files)


def places_of(jobs: list[Job]) -> Places:
    """File and place of all jobs that write something."""
    found = []
    for job in jobs:
        if isinstance(job, CopyJob):
            found += [(job.file.name, job.place)] if job.copy else []
        elif not isinstance(job, ReduceJob):
            found.append((job.targets[0].file, job.place))
    return found


def test_no_two_jobs_have_the_same_place(files: list[OutputFile]) -> None:
    places = places_of(make_jobs(files, link=False))
    assert len(set(places)) == len(places)
    assert any(row for _, (_, row) in places), "no matrix was more than one job"


def test_done_jobs_are_left_out_and_no_others(files: list[OutputFile]) -> None:
    places = places_of(make_jobs(files, link=False))
    done, todo = places[::2], places[1::2]
    assert places_of(make_jobs(files, link=False, done=done)) == todo


def test_what_needs_no_reduction_any_more_does_not_reduce(files: list[OutputFile]) -> None:
    jobs = make_jobs(files, link=False)
    rest = make_jobs(files, link=False, done=places_of(jobs))
    assert not any(isinstance(job, ReduceJob) for job in rest)


def jobs_of(folder: Path, scheme: str) -> list[Job]:
    checkpoint, _ = quantize(open_checkpoint(str(folder)), QuantizeOptions(scheme=(scheme,)))
    return make_jobs(lay_out(checkpoint).files, link=False)


@pytest.mark.parametrize("width", [1, 2, 4, 100])
def test_neighbouring_jobs_write_different_files(pylm: Path, width: int) -> None:
    jobs = jobs_of(pylm, "FP8_DYNAMIC")
    found = spread(jobs, width)
    assert Counter(found) == Counter(jobs)
    writing = [*itertools.chain(*(job.files for job in found if isinstance(job, ComputeJob)))]
    begun = list(dict.fromkeys(writing))
    last = {name: i for i, name in enumerate(writing)}
    for i, name in enumerate(begun[width:]):
        assert sum(last[other] > writing.index(name) for other in begun[: i + width]) < width
    if width > 1:
        until = min(last[name] for name in begun[:width])
        assert all(one != other for one, other in itertools.pairwise(writing[:until]))


@pytest.mark.parametrize("width", [1, 2, 4, 100])
def test_jobs_that_reduce_are_spread_with_those_that_write(pylm: Path, width: int) -> None:
    jobs = jobs_of(pylm, "NVFP4A16")
    found = spread(jobs, width)
    assert Counter(found) == Counter(jobs)
    is_copy = [isinstance(job, CopyJob) for job in found]
    assert is_copy == sorted(is_copy, reverse=True)
    # A value of the last file is not made before the first one is written.
    written = [i for i, job in enumerate(found) if isinstance(job, ComputeJob)]
    reduced = [i for i, job in enumerate(found) if isinstance(job, ReduceJob)]
    assert written[0] < reduced[-1]


def test_the_columns_of_a_large_matrix_leave_room_for_other_jobs(pylm: Path) -> None:
    """A rotation that mixes the 8192 rows of a 70B model's down_proj, read by columns."""
    stored = next(iter(open_checkpoint(str(pylm)).tensors()))[1]
    assert isinstance(stored, StoredTensor)
    shape = (8192, 28672)
    source = replace(stored, spec=TensorSpec("BF16", shape))
    matrix = Matrix(source, shape, granule=(8192, 1))
    assert matrix.is_columnwise
    widest = largest_magnitude([matrix], Execution("cpu", allow_nonfinite=False))
    job = ReduceJob(widest, matrix, range(0, 28672, 4096))
    run = 8192 * 4096  # read as bfloat16; results in float32, in bands and joined
    assert run * (2 + 4 + 4) < job.memory < parse_bytes("2GB") // 4
