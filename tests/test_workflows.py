"""What runs on a forge: the workflow, the issue forms and the container name what there is."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def jobs() -> dict[str, Any]:
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    found: dict[str, Any] = workflow["jobs"]
    return found


def test_the_workflow_covers_what_is_promised() -> None:
    matrix = jobs()["tests"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}
    assert matrix["python"][0] == PROJECT["requires-python"].removeprefix(">=")
    assert all(isinstance(version, str) for version in matrix["python"]), "3.10 is not 3.1"


def test_the_workflow_runs_what_exists() -> None:
    steps = [step for job in jobs().values() for step in job["steps"]]
    scripts = [step["run"] for step in steps if "run" in step]
    sessions = {
        *re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    }
    for script in scripts:
        for path in re.findall(r"-c (\S+)", script):
            assert (ROOT / path).is_file()
        if script.startswith("nox -s"):
            assert sessions.issuperset(script.split()[2:])
    readme = (ROOT / "README.md").read_text()
    assert any("-e '.[test]'" in script and script.split(" && ")[0] in readme for script in scripts)


def test_issue_forms_ask_for_what_is_needed() -> None:
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in FORMS}
    assert forms.pop("config")["blank_issues_enabled"] is not False
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys()
        names = [field["id"] for field in form["body"]]
        assert len(names) == len({*names})
        assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_container_needs_no_root_and_no_cuda() -> None:
    lines = (ROOT / ".ci/Containerfile").read_text().splitlines()
    assert "USER 1000" in lines, "a number, by which a cluster sees that it is not root"
    assert any("-c /src/.ci/constraints.txt" in line for line in lines)
    assert lines[-1] == 'ENTRYPOINT ["ctcli"]'
