"""From the steps of a recipe to rewrites with their options."""

from __future__ import annotations

from collections.abc import Sequence

from ctcli.checkpoint.value import StepTable
from ctcli.cli.commands import REWRITES, Step
from ctcli.errors import CtcliError, problems_of
from ctcli.storage.steps import RECIPE_HINT, make_options, near_names


def make_steps(steps: Sequence[StepTable]) -> list[tuple[str, Step]]:
    """The steps of a recipe, each with its command's name.

    Args:
        steps: tables with `use` and options.

    Raises:
        CtcliError: unknown commands and options, values of a wrong type, files that are not what
            they were; lists them all.
    """
    problems: list[str] = []
    hints: list[str] = []
    made: list[tuple[str, Step]] = []
    for number, table in enumerate(steps, 1):
        if "use" not in table:
            problems.append(f"step {number}: it has no `use`, which names a command.")
            continue
        use = str(table["use"])
        place = f"step {number} ({use})"
        if made and not made[-1][1].form.is_checkpoint:
            problems.append(f"{place}: {made[-1][0]} makes a file, and has to come last.")
        if use not in REWRITES:
            problems.append(f"step {number}: use = {use!r}{near_names(use, REWRITES)}.")
            continue
        try:
            with problems_of(place):
                rewrite = REWRITES[use]
                made.append((use, rewrite.step(make_options(rewrite.options, table))))
        except CtcliError as error:
            problems += error.problems
            hints.append(error.hint)
    if problems:
        raise CtcliError(problems, " ".join(dict.fromkeys(hints)) or RECIPE_HINT)
    return made
