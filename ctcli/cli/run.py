"""`ctcli run`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctcli.checkpoint.value import Checkpoint, StepTable
from ctcli.cli.commands import Made, Step
from ctcli.cli.recipes import make_steps
from ctcli.console import Report
from ctcli.errors import problems_of
from ctcli.options import argument, option
from ctcli.storage.recipe import read_recipe


def _print_first_recipe(source: str) -> None:
    from ctcli.cli.first_recipe import first_recipe

    sys.stdout.write(first_recipe(source))


@dataclass(frozen=True)
class RunOptions:
    """Perform several rewrites in one read and one write, without rounding between them.

    A checkpoint's own ctcli_recipe.toml is such a recipe, and makes the same checkpoint again.
    """

    recipe: Path = argument(
        "RECIPE.toml",
        "TOML with a list of steps: `use` names a command, and the other keys are its options, "
        "with underscores. Or llm-compressor's recipe.yaml.",
    )
    init: str | None = option(
        None,
        "Print a commented recipe for SRC, and do nothing else.",
        metavar="SRC",
        instead=_print_first_recipe,
        panel="What",
    )


@dataclass(frozen=True)
class RunReport:
    """What the steps do, one after the other."""

    steps: Sequence[tuple[str, Report]]

    def with_errors(self, measured: Mapping[str, Sequence[float]]) -> RunReport:
        """The same with what was measured, by module."""
        return RunReport([(use, report.with_errors(measured)) for use, report in self.steps])

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, for people."""
        rows = []
        for number, (use, report) in enumerate(self.steps, 1):
            rows += [(f"step {number}", use), *report.rows()]
        return rows

    def items(self) -> list[str]:
        """Further lines, for people."""
        return [line for _, report in self.steps for line in report.items()]

    def data(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {"steps": [{"use": use, **report.data()} for use, report in self.steps]}


def run(options: RunOptions) -> Step:
    """The steps of a recipe as one.

    Raises:
        CtcliError: what is wrong with the recipe, or with any of its steps.
    """
    recipe = options.recipe
    read = read_recipe(recipe)
    step = chain(read.steps)

    def rewrite(checkpoint: Checkpoint) -> tuple[Made, Report]:
        if read.headers_sha256 not in (None, checkpoint.origin.headers_sha256):
            warning = f"{recipe}: it is from another checkpoint than {checkpoint.origin.name}."
            checkpoint = replace(checkpoint, warnings=(*checkpoint.warnings, warning))
        return step.rewrite(checkpoint)

    return replace(step, rewrite=rewrite)


def chain(tables: Sequence[StepTable]) -> Step:
    """Steps of a recipe as one.

    Raises:
        CtcliError: what is wrong with any of them.
    """
    steps = make_steps(tables)

    def rewrite(checkpoint: Checkpoint) -> tuple[Made, Report]:
        made: Made = checkpoint
        reports = []
        for number, (use, step) in enumerate(steps, 1):
            assert isinstance(made, Checkpoint), "what makes a file comes last"
            with problems_of(f"step {number} ({use})"):
                made, report = step.rewrite(made)
            reports.append((use, report))
        return made, RunReport(reports)

    last = steps[-1][1]
    return Step(rewrite, last.form, any(step.link for _, step in steps), tuple(tables))
