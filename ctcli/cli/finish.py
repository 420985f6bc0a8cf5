"""`ctcli finish`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctcli.cli.options import as_json, quiet
from ctcli.cli.parts import command_of, lacking_parts
from ctcli.console import Result, Terminal
from ctcli.errors import CtcliError
from ctcli.options import argument
from ctcli.redaction import redact
from ctcli.storage.destination import partial_of
from ctcli.storage.gathering import clear_up, missing_files, publish, read_agreement
from ctcli.units import format_bytes


@dataclass(frozen=True)
class FinishOptions:
    """Complete a checkpoint whose parts were made by --part.

    The part that comes last publishes DST by itself. Where that one was killed, this does; and it
    says which parts are missing. Where DST is published already, there is nothing to do.
    """

    destination: Path = argument("DST", "The directory, or file, that the parts are of.")
    json: bool = as_json()
    quiet: bool = quiet()


def finish(options: FinishOptions) -> None:
    """Publish DST, or say what is missing.

    Raises:
        CtcliError: parts are missing, or were made elsewhere.
    """
    destination, terminal = options.destination, Terminal(options.quiet, options.json)
    made = read_agreement(destination)
    if made is None and not destination.exists():
        raise CtcliError(
            f"{destination}: no parts of it lie in {partial_of(destination)}.",
            "Make them first, by the command of your choice with --part 1/N to --part N/N.",
        )
    if made:
        missing = missing_files(destination, made)
        if missing and not made.parts:
            raise CtcliError(
                f"{destination}: {len(missing)} of {len(made.files)} files are missing.",
                "Run the same command with --cluster again.",
            )
        if missing:
            parts = lacking_parts(missing, made)
            raise CtcliError(
                [f"{destination}: part {part} is missing." for part in parts],
                f"Run {redact(command_of(made, parts[0]))}"
                + (", and likewise the others." if len(parts) > 1 else "."),
            )
        publish(destination, made)
    else:
        clear_up(destination)
    what = "before; there is nothing to do"
    if made:
        what = f"{len(made.files)} files, {format_bytes(sum(made.sizes.values()))}"
    data = {
        "command": "finish",
        "destination": str(destination),
        "parts": made.parts if made else None,
        "files": list(made.files) if made else None,
        "published": True,
    }
    terminal.show(Result(f"finish: {destination}", [("published", what)], [], data))
