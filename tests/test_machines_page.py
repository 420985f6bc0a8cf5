"""The guide's page on machines: its scripts are run, and its tables are those that are computed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.bench.predict import FILE_SYSTEMS, MACHINES, MODELS, SCHEMES, seconds, table
from tests.conftest import ROOT
from tests.helpers.checkpoints import file_hashes
from tests.helpers.frozen_sources import make_sources
from tests.helpers.processes import HANG_SECONDS, environment

PAGE = (ROOT / "ctcli" / "guide" / "machines.md").read_text()


def section(heading: str) -> str:
    return PAGE[PAGE.index(f"\n{heading}\n") + 1 :].partition("\n## ")[0].partition("\n### ")[0]


def block(heading: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source whose columns all schemes divide, and what one process makes of it."""
    made = tmp_path_factory.mktemp("machines")
    sources = make_sources(made)
    sources["golden"].exists()
    (made / "SRC").symlink_to(sources["golden"])
    for scheme in ("W4A16", "NVFP4A16"):
        words = ["quantize", "SRC", f"alone-{scheme}", "--scheme", scheme, "--quiet"]
        run([sys.executable, "-m", "ctcli", *words], made)
    return made


def run(
    words: list[str], folder: Path, further: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, with ours and stand-ins for those of other systems."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, text in {
        "ctcli": f'exec {python} -m ctcli "$@"',
        "dask": f'exec {python} -m dask "$@"',
        "srun": 'exec "$@"',
        "ssh": 'shift; exec sh -c "$1"',
        "pip": "true",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), os.environ["PATH"]))
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment({**(further or {}), "PATH": path}),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_parts_of_the_page(folder: Path) -> None:
    done = run(["bash", "-euc", block("## Parts", "sh")], folder)
    assert "part 2/3 is missing" in done.stderr
    assert file_hashes(folder / "DST") == file_hashes(folder / "alone-W4A16")


def test_the_slurm_array(folder: Path) -> None:
    script = block("### Slurm", "bash")
    for number in ("2", "1"):
        slurm = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "2"}
        run(["bash", "-c", script], folder, {"SRC": "SRC", "DST": "slurm", **slurm})
    assert file_hashes(folder / "slurm") == file_hashes(folder / "alone-NVFP4A16")


def test_the_job_of_kubernetes(folder: Path) -> None:
    job = yaml.safe_load(block("### Kubernetes", "yaml"))
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (text,) = container["args"]
    assert spec["completionMode"] == "Indexed"
    assert f'/{spec["completions"]}"' in text
    text = text.replace("/checkpoints/DST", "pods").replace("/checkpoints/", "")
    text = text.replace(f'/{spec["completions"]}"', '/3"')
    for index in (1, 2, 0):
        run([*container["command"], text], folder, {"JOB_COMPLETION_INDEX": str(index)})
    assert file_hashes(folder / "pods") == file_hashes(folder / "alone-NVFP4A16")


def test_the_loop_over_ssh(folder: Path) -> None:
    where = {"SRC": "SRC", "DST": "by ssh", "HOSTS": "a b c"}
    run(["bash", "-c", block("### ssh", "bash")], folder, where)
    assert file_hashes(folder / "by ssh") == file_hashes(folder / "alone-NVFP4A16")


@pytest.mark.parametrize(
    "heading", ["### Slurm", "### ssh", "### Jobs on a hub", "## A Dask cluster"]
)
def test_scripts_parse(heading: str) -> None:
    subprocess.run(["bash", "-n"], input=block(heading, "bash"), text=True, check=True)


def test_the_tables_are_those_that_are_computed() -> None:
    for name in ("NVFP4A16", "FP8_DYNAMIC"):
        assert "\n".join(table(name)) in PAGE
    for name, scheme in SCHEMES.items():
        assert name in PAGE
        for model in MODELS.values():
            for rate in FILE_SYSTEMS.values():
                times = [seconds(model, scheme, count, rate) for count in MACHINES]
                assert times == sorted(times, reverse=True)
                assert times[-1] > model.nbytes * (1 + scheme.ratio) / rate
