"""The structure: imports run downward, heavy packages stay out of start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the lowest floor up; what each room may import besides the rooms of lower floors.
FLOORS: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "ops": (),
        "errors": (),
        "units": (),
        "redaction": (),
        "interrupts": ("errors",),
        "expressions": (),
    },
    {"patterns": (), "events": (), "options": ()},
    {"lazy": (), "console": ()},
    {"schemes": (), "models": (), "checkpoint": ("models",)},
    {"storage": (), "formats": ()},
    {"engine": (), "rewrites": ()},
    {"inspecting": (), "verifying": ()},
    {"cli": (), "__main__": ("cli",)},
)
# Imported by one room only, or not at all: oracles of the tests, and click, which is Typer's.
OWNERS = {
    "numba": "ctcli.ops",
    "llvmlite": "ctcli.ops",
    "rich": "ctcli.console",
    "typer": "ctcli.cli",
    "huggingface_hub": "ctcli.storage.hub",
    "httpx": "ctcli.storage.hub",
    "distributed": "ctcli",
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


def room_of(module: str) -> str:
    return module.split(".")[1]


FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_is_on_one_floor() -> None:
    rooms = [room for floor in FLOORS for room in floor]
    assert sorted(rooms) == sorted({room_of(m) for m in MODULES if m != "ctcli"})


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"ctcli"}))
def test_imports_run_downward_only(module: str) -> None:
    room = room_of(module)
    floor = FLOOR_OF[room]
    for imported in MODULES[module] & MODULES.keys() - {"ctcli"}:
        other = room_of(imported)
        beside = other == room or other in FLOORS[floor][room]
        assert beside or FLOOR_OF[other] < floor, f"{module} imports {imported}"


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
