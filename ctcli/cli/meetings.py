"""Where the files of several processes meet, as the options of a command ask for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.commands import Made
from ctcli.cli.layouts import card_of
from ctcli.cli.options import Destination, Shared
from ctcli.cli.pushing import push_target
from ctcli.cli.running import check_options
from ctcli.console import Terminal
from ctcli.engine.shares import Meeting, is_made
from ctcli.options import OptionError
from ctcli.storage.agreement import Agreement
from ctcli.storage.destination import Form
from ctcli.storage.gathering import Gathering, attempt_in, attempt_of
from ctcli.storage.hub.kinds import publishable
from ctcli.storage.layout import Layout


def check_shared(
    terminal: Terminal, source: str, target: Destination, shared: Shared, form: Form
) -> None:
    """Refuse what does not go together where several processes make DST."""
    check_options(terminal, source, target, shared, form)
    if shared.push or shared.resume_from_hub:
        raise OptionError(
            "--push and --resume-from-hub are for one machine alone. Of several, each continues "
            "what the others have pushed; give hf://ORG/NAME as DST."
        )


def attempt_at(target: Destination, label: str) -> Path:
    """Where a process makes its share: below DST, or beside its name if DST is on a hub."""
    if target.repo:
        return attempt_in(target.path.parent, f"{target.path.name}.{label}")
    return attempt_of(target.path, label)


def for_target(made: Made, target: Destination, include: Sequence[str]) -> Made:
    """What is made, but for files that are not to be published if DST is on a hub.

    Args:
        made: what is made.
        target: DST.
        include: see `publishable`.
    """
    if target.repo:
        assert isinstance(made, Checkpoint), "what a hub does not take was refused"
        return publishable(made, include)
    return made


def meeting_of(
    target: Destination, shared: Shared, made: Made, layout: Layout, agreement: Agreement
) -> Meeting:
    """Where the files of this command meet those of others."""
    if not target.repo:
        return folder_of(target.path, layout, agreement)
    from ctcli.storage.hub.gathering import HubGathering
    from ctcli.storage.hub.target import token

    assert isinstance(made, Checkpoint), "what a hub does not take was refused"
    typed = shlex.join(agreement.command)
    card = card_of(made, typed, target.repo, token())
    return HubGathering(push_target(target.repo, shared), agreement, card)


def folder_of(destination: Path, layout: Layout, agreement: Agreement) -> Gathering:
    """The folder in which the files of DST meet."""
    return Gathering(destination, agreement, partial(is_made, layout, destination))
