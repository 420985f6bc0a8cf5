"""`ctcli verify`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import typer

from ctcli.checkpoint.value import RECIPE_NAME, Checkpoint
from ctcli.cli.options import as_json, quiet, source_directory
from ctcli.cli.recipes import make_steps
from ctcli.console import Result, Section, Terminal
from ctcli.errors import CtcliError, os_errors_of
from ctcli.options import argument
from ctcli.storage.opening import local_directory, open_checkpoint
from ctcli.storage.recipe import read_recipe
from ctcli.units import format_seconds
from ctcli.verifying.findings import Verification
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.page import PAGE_START, page

_DIFFERENT = 3
# These steps change no value, or are what the comparison is about.
_NOT_REPLAYED = ("reindex", "quantize", "export-bin")


@dataclass(frozen=True)
class Reading:
    """What is checked, and how the result is told."""

    destination: Path = argument("DST", "Checkpoint: a local directory.")
    json: bool = as_json()
    quiet: bool = quiet()


def verify(options: VerifyOptions, reading: Reading) -> None:
    """Check, show what is different, and end with `_DIFFERENT` if anything is."""
    from ctcli.verifying.verification import verify as verify_checkpoint

    destination, against, html = reading.destination, options.against, options.html
    if local_directory(str(destination)) is None:
        raise CtcliError(f"{destination}: no such directory.", "Name the checkpoint's directory.")
    if html:
        _check_page(html)
    source = None
    if against:
        source_directory(against, options.revision)
        opened = open_checkpoint(against, options.revision)
        source = expected_checkpoint(opened, destination / RECIPE_NAME)
    terminal, start = Terminal(reading.quiet, reading.json), time.monotonic()
    found = verify_checkpoint(destination, options, terminal.progress, source)
    if html:
        with os_errors_of(str(html), "writing"):
            html.write_text(page(str(destination), found), encoding="utf-8")
    terminal.show(_result(destination, found, time.monotonic() - start))
    if found.findings:
        raise typer.Exit(_DIFFERENT)


def _check_page(path: Path) -> None:
    """Refuse to write a page where that cannot be done, or over anything but a page.

    Raises:
        CtcliError: says what is in the way.
    """
    if path.is_file():
        with os_errors_of(str(path), "reading"), path.open("rb") as file:
            is_page = file.read(len(PAGE_START)) in (b"", PAGE_START.encode())
        if not is_page:
            raise CtcliError(f"{path}: it exists, and is no page.", "Name another FILE.")
    place = path if path.exists() else path.resolve().parent
    if path.is_dir() or not os.access(place, os.W_OK):
        raise CtcliError(f"{path}: a file cannot be written there.", "Name another FILE.")


def expected_checkpoint(source: Checkpoint, recipe: Path) -> Checkpoint:
    """The source after what a recipe does to it, but for quantizing.

    Args:
        source: where the recipe's steps begin, or those of its history.
        recipe: a file, which need not be there.

    Raises:
        CtcliError: a step cannot be repeated.
    """
    try:
        read = read_recipe(recipe)
    except CtcliError:
        return source  # there is none; or verifying finds out what is wrong with it
    # The source may be further back; what was done to it already is its own history.
    every, done = (*read.history, *read.steps), source.history
    steps = every[len(done) :] if every[: len(done)] == done else read.steps
    todo = [
        {key: value for key, value in step.items() if key not in ("device", "max_shard_size")}
        for step in steps
        if step.get("use") not in _NOT_REPLAYED
    ]
    for _, step in make_steps(todo):
        made, _ = step.rewrite(source)
        assert isinstance(made, Checkpoint), "what makes a file has no recipe"
        source = made
    return source


def _result(destination: Path, found: Verification, seconds: float) -> Result:
    lines = [(f.kind, f"{f.where}: {f.message}") for f in found.findings]
    sections = [Section("differences", lines, whole=True)] if lines else []
    rows = [*found.rows(), ("time", format_seconds(seconds))]
    data = {
        "command": "verify",
        "checkpoint": str(destination),
        **found.data(),
        "seconds": round(seconds, 3),
    }
    return Result(f"verify: {destination}", rows, [], data, sections)
