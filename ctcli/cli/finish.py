"""`ctcli finish`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctcli.cli.options import Destination, as_json, as_target, on_hub, quiet
from ctcli.cli.parts import command_of, lacking_parts
from ctcli.console import Result, Terminal
from ctcli.errors import CtcliError
from ctcli.options import argument
from ctcli.storage.agreement import NO_PARTS, Agreement
from ctcli.storage.destination import partial_of
from ctcli.storage.gathering import clear_up, missing_files, publish, read_agreement
from ctcli.units import format_bytes


@dataclass(frozen=True)
class FinishOptions:
    """Complete a checkpoint whose parts were made by --part.

    The part that comes last publishes DST by itself. Where that one was killed, this does; and it
    says which parts are missing. Where DST is published already, there is nothing to do.
    """

    destination: Destination = argument(
        "DST",
        "The directory or file that the parts are of, or hf://ORG/NAME.",
        parse=as_target,
    )
    branch: str = on_hub("main", "Branch of the repository to publish on.", metavar="NAME")
    json: bool = as_json()
    quiet: bool = quiet()


def finish(options: FinishOptions) -> None:
    """Publish DST, or say what is missing.

    Raises:
        CtcliError: parts are missing, or were made elsewhere.
    """
    target, terminal = options.destination, Terminal(options.quiet, options.json)
    made = _finish_on_hub(target.repo, options.branch) if target.repo else _finish_here(target.path)
    what = "before; there is nothing to do"
    if made:
        what = f"{len(made.files)} files, {format_bytes(sum(made.sizes.values()))}"
    data = {
        "command": "finish",
        "destination": str(target),
        "parts": made.parts if made else None,
        "files": list(made.files) if made else None,
        "published": True,
    }
    terminal.show(Result(f"finish: {target}", [("published", what)], [], data))


def _finish_here(destination: Path) -> Agreement | None:
    made = read_agreement(destination)
    if made is None and not destination.exists():
        where = partial_of(destination)
        raise CtcliError(f"{destination}: no parts of it lie in {where}.", NO_PARTS)
    if made is None:
        clear_up(destination)
        return None
    _check_complete(str(destination), missing_files(destination, made), made)
    publish(destination, made)
    return made


def _finish_on_hub(repo: str, branch: str) -> Agreement | None:
    from ctcli.storage.hub.gathering import find_gathering
    from ctcli.storage.hub.target import PushTarget

    found = find_gathering(PushTarget(repo, branch))
    if found is None:
        return None
    _check_complete(f"hf://{repo}", found.missing(), found.agreement)
    found.publish()
    return found.agreement


def _check_complete(destination: str, missing: list[str], made: Agreement) -> None:
    """Refuse to publish without all files."""
    if missing and not made.parts:
        raise CtcliError(
            f"{destination}: {len(missing)} of {len(made.files)} files are missing.",
            "Run the same command with --cluster again.",
        )
    if missing:
        parts = lacking_parts(missing, made)
        raise CtcliError(
            [f"{destination}: part {part} is missing." for part in parts],
            f"Run {command_of(made, parts[0])}"
            + (", and likewise the others." if len(parts) > 1 else "."),
        )
