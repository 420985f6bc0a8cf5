"""`ctcli verify`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ctcli import __version__
from ctcli.checkpoint.value import RECIPE_NAME
from ctcli.cli.options import as_json, as_path, cluster, quiet
from ctcli.cli.sides import directory_of, expected_checkpoint
from ctcli.console import Result, ResultSection, Terminal
from ctcli.errors import CtcliError, grouped, os_errors_of
from ctcli.interrupts import WHILE_READING, interrupted_means
from ctcli.options import argument
from ctcli.redaction import redact
from ctcli.storage.opening import open_checkpoint
from ctcli.units import format_seconds
from ctcli.verifying.findings import Verification
from ctcli.verifying.options import VerifyOptions
from ctcli.verifying.page import PAGE_START, page

if TYPE_CHECKING:
    from ctcli.verifying.scanning import Scanned
    from ctcli.verifying.subject import Subject

_DIFFERENT = 3


@dataclass(frozen=True)
class VerifyPlaces:
    """What is checked, and how the result is told."""

    destination: str = argument(
        "DST",
        "Checkpoint: a directory, one weights file, or on a hub, as SRC of other commands.",
        parse=as_path,
    )
    json: bool = as_json()
    cluster: str | None = cluster("read")
    quiet: bool = quiet("Print differences and errors only (and --json's object).")


@interrupted_means(WHILE_READING)
def verify(options: VerifyOptions, reading: VerifyPlaces) -> None:
    """Check, show what is different, and end with `_DIFFERENT` if anything is."""
    from ctcli.engine.run import tell_of_compiling
    from ctcli.verifying.verification import verify as verify_checkpoint

    against, html = options.against, options.html
    terminal, start = Terminal(reading.quiet, reading.json), time.monotonic()
    if html:
        _check_page(html)
    if options.sha256 and not options.sha256.exists():
        _check_writable(options.sha256)
    tell_of_compiling(terminal.notify)
    directory, commit = directory_of(reading.destination, None, terminal.progress)
    source = None
    if against:
        opened = open_checkpoint(against, options.revision)
        source = expected_checkpoint(opened, directory / RECIPE_NAME)
    scan = _scan(options, reading, commit, terminal)
    found = verify_checkpoint(directory, options, scan, source)
    if html:
        with os_errors_of(str(html), "writing"):
            content = page(reading.destination, found, _facts(options))
            html.write_text(content, encoding="utf-8")
    terminal.show(_result(reading.destination, found, html, time.monotonic() - start))
    if found.findings:
        raise typer.Exit(_DIFFERENT)


def _scan(
    options: VerifyOptions, reading: VerifyPlaces, commit: str | None, terminal: Terminal
) -> Callable[[Subject], Scanned]:
    """What looks at the values."""
    if reading.cluster:
        from ctcli.cli.verify_cluster import scan_on_cluster

        return partial(
            scan_on_cluster, reading.cluster, reading.destination, commit, options, terminal
        )
    from ctcli.verifying.scanning import scan_here

    return partial(scan_here, options=options, progress=terminal.progress)


def _facts(options: VerifyOptions) -> list[tuple[str, str]]:
    """What the page says of the run."""
    limits = [f"relative error {options.max_error:g}"] if options.max_error is not None else []
    limits += [f"what {options.target} demands"] if options.target else []
    return [
        ("limits", ", ".join(limits) or "errors that rounding cannot leave"),
        ("command", redact(shlex.join(["ctcli", *sys.argv[1:]]))),
        ("ctcli", __version__),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]


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
    _check_writable(path)


def _check_writable(path: Path) -> None:
    place = path if path.exists() else path.resolve().parent
    if path.is_dir() or not os.access(place, os.W_OK):
        raise CtcliError(f"{path}: a file cannot be written there.", "Name another FILE.")


def _result(destination: str, found: Verification, html: Path | None, seconds: float) -> Result:
    told = grouped(f"{f.kind}\0{f.where}: {f.message}" for f in found.findings)
    lines = [(kind, message) for kind, _, message in (line.partition("\0") for line in told)]
    sections = [ResultSection("differences", lines, whole=True, is_essential=True)] if lines else []
    rows = [*found.rows(), *([("page", str(html))] if html else [])]
    rows.append(("time", format_seconds(seconds)))
    data = {
        "command": "verify",
        "checkpoint": destination,
        **found.data(),
        "seconds": round(seconds, 3),
    }
    return Result(f"verify: {destination}", rows, [], data, sections)
