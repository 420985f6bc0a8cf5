"""The structure: imports run downward, heavy packages stay out of start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = (
    ("ctcli.errors", "ctcli.ops", "ctcli.redaction", "ctcli.units"),
    ("ctcli.console", "ctcli.events", "ctcli.lazy", "ctcli.models", "ctcli.patterns"),
    ("ctcli.checkpoint", "ctcli.schemes"),
    ("ctcli.formats", "ctcli.storage"),
    ("ctcli.engine", "ctcli.inspecting", "ctcli.rewrites", "ctcli.verifying"),
    ("ctcli.cli",),
    ("ctcli.process",),
)
# Imported by one room only, or not at all: oracles of the tests, and click, which is Typer's.
OWNERS = {
    "numba": "ctcli.ops",
    "rich": "ctcli.console",
    "typer": "ctcli.cli",
    "huggingface_hub": "ctcli.storage.hub",
    "httpx": "ctcli.storage.hub",
    "click": None,
    "compressed_tensors": None,
    "llmcompressor": None,
    "transformers": None,
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imports_of(
        path
    )
    for path in sorted((ROOT / "ctcli").rglob("*.py"))
}


def floor_of(module: str) -> int:
    for floor, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return floor
    raise AssertionError(f"{module} is on no floor")


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"ctcli", "ctcli.__main__"}))
def test_imports_run_downward_only(module: str) -> None:
    for imported in MODULES[module] & MODULES.keys() - {"ctcli"}:
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported}"


def test_imports_have_no_cycle() -> None:
    graph = {module: names & MODULES.keys() - {module} for module, names in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_has_one_owner(package: str) -> None:
    users = {m for m, names in MODULES.items() if any(n.split(".")[0] == package for n in names)}
    owner = OWNERS[package]
    assert {m for m in users if owner is None or not f"{m}.".startswith(f"{owner}.")} == set()
    assert bool(users) == (owner is not None)


HEAVY = ("torch", "numba", "numpy", "transformers", "huggingface_hub", "safetensors")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("reindex", "--help"), ("reindex",), ("inspect",)]
)
def test_start_up_reindex_and_inspect_import_nothing_heavy(
    arguments: tuple[str, ...], pylm: Path, tmp_path: Path
) -> None:
    places = [] if "--help" in arguments else [str(pylm)]
    if arguments == ("reindex",):
        places.append(str(tmp_path / "out"))
    program = f"""
import sys
import ctcli.cli
try:
    ctcli.cli.app()
except SystemExit as end:
    print("status", end.code or 0, "loaded", sorted(set({HEAVY}) & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, *places],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "status 0 loaded []"
