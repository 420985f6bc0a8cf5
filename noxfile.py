"""Development sessions: `nox -l` lists them."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nox

CONSTRAINTS = ".ci/constraints.txt"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff."""
    session.install("-c", CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]", "mypy", "nox")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def sweep(session: nox.Session) -> None:
    """Run the tests that assert for every value what others assert of some."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("pytest", "-m", "sweep", *session.posargs)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the tests on the lowest versions declared, torch excepted: its old builds bring CUDA."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lowest = [requirement.replace(">=", "==") for requirement in project["dependencies"]]
    torch = re.search(r"^torch==.*$", Path(CONSTRAINTS).read_text(), re.MULTILINE)
    assert torch, "the constraints pin torch"
    pins = [pin for pin in lowest if not pin.startswith("torch==")] + [torch[0]]
    session.install(*pins, "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def calls(session: nox.Session) -> None:
    """Make every call of every command fail, or interrupt it there: half an hour on two cores."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    env = {"CTCLI_EVERY_CALL": "1"}
    words = ("tests/engine/test_every_call.py", "-o", "faulthandler_timeout=0")
    session.run("pytest", *words, *session.posargs, env=env)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz all that is read, ten minutes of the processor each; arguments: seconds, targets."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]", "atheris")
    session.run("python", "-m", "tests.fuzzing", *session.posargs)


@nox.session
def architectures(session: nox.Session) -> None:
    """Prove records on a tiny model of every decoder-only type; arguments: model types."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "tests.bench.architectures", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill 1,000 runs on 300 MB, and 100 jobs on a hub; arguments: how many of each."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "tests.bench.kills", *session.posargs)


@nox.session
def crowds(session: nox.Session) -> None:
    """Let several processes make one DST at once, 200 times; arguments: how often, and a seed."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "tests.bench.crowds", *session.posargs)


@nox.session
def losses(session: nox.Session) -> None:
    """Let 50 jobs on a cluster meet with faults; arguments: how many, and of how many MB."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "tests.bench.losses", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time commands against other tools, and a job on a hub.

    Arguments go to `python -m tests.bench`, and the job is left out.
    """
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "tests.bench", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.bench.hub_job")


@nox.session
def quality(session: nox.Session) -> None:
    """Measure KL and perplexity of a model's quantized checkpoints by scheme and method.

    Arguments: the model's folder, and what `python -m tests.bench.quality` takes.
    """
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    session.run("python", "-m", "tests.bench.quality", *(session.posargs or ["fixtures/pylm"]))


@nox.session
@nox.parametrize("script", sorted(path.stem for path in Path("fixtures/sources").glob("make_*.py")))
def sources(session: nox.Session, script: str) -> None:
    """Make checkpoints of `fixtures/sources` anew with the packages that a script's head names.

    A head has lines `# package==version ...`, and `# --no-deps ...` for packages by themselves.
    """
    path = Path("fixtures/sources", script).with_suffix(".py")
    for requirements in _heads(path):
        session.install(*requirements)
    session.run("python", path)


@nox.session
def serving(session: nox.Session) -> None:
    """Let vLLM compute from pylm, as AWQ and as FP8, before and after: ten minutes, 5 GB."""
    session.install("-c", CONSTRAINTS, "-e", ".[test]")
    folder = Path(session.create_tmp())
    sources = [folder / "awq", folder / "fp8"]
    for source in sources:
        script = Path(f"fixtures/sources/pylm_{source.name}.py")
        shutil.rmtree(source, ignore_errors=True)
        _run_apart(script, session, "fixtures/pylm", source)
        for command in ("convert", "dequantize"):
            session.run("ctcli", command, source, f"{source}-{command}", "--overwrite")
    _run_apart(Path("tests/serving/logprobs.py"), session, *sources)


def _run_apart(script: Path, session: nox.Session, *arguments: str | Path) -> None:
    """Run a script in an environment of its own, with the packages that its head names."""
    folder = Path(session.create_tmp(), f"venv-{script.stem}")
    session.run_install("python", "-m", "venv", "--clear", folder)
    python = folder / "bin" / "python"
    for requirements in _heads(script):
        session.run_install(python, "-m", "pip", "install", "-q", *requirements, external=True)
    session.run(python, script, *arguments, external=True)


def _heads(script: Path) -> Iterator[list[str]]:
    """What pip is told to install, line by line of a script's head."""
    for line in script.read_text().splitlines():
        if not line.startswith("# "):
            return
        yield line.removeprefix("# ").split()
