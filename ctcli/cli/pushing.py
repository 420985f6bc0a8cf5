"""Publishing on a hub, as the options ask for it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ctcli.checkpoint.value import Checkpoint
from ctcli.cli.layouts import card_of
from ctcli.cli.options import Destination, Shared
from ctcli.console import Result
from ctcli.engine.plan import Plan, check_resources, make_plan
from ctcli.errors import CtcliError
from ctcli.options import OptionError
from ctcli.storage.destination import Form, partial_of
from ctcli.storage.journal import read_journal

if TYPE_CHECKING:
    from ctcli.storage.hub.publication import Publication
    from ctcli.storage.hub.target import PushTarget


def repository(target: Destination, shared: Shared, form: Form) -> str | None:
    """The repository to publish on, if there is one.

    Raises:
        OptionError: options that do not go together.
    """
    repo = target.repo or shared.push
    if target.repo and shared.push:
        raise OptionError("--push is for a DST on this disk, and DST is a repository.")
    if repo and not form.is_checkpoint:
        raise OptionError("--push is for checkpoints, and this makes one file.")
    idle = {
        "--private": shared.private,
        "--branch": shared.branch != "main",
        "--commit-message": shared.commit_message,
        "--include": shared.include,
        "--resume-from-hub": shared.resume_from_hub,
    }
    if given := [name for name, is_given in idle.items() if is_given and not repo]:
        raise OptionError(f"{', '.join(given)} goes with --push or a DST hf://ORG/NAME.")
    return repo


def check_push(repo: str, plan: Plan, shared: Shared) -> None:
    """See whether the hub would take it. Changes nothing there.

    Raises:
        CtcliError: it would not.
    """
    from ctcli.storage.hub.target import look_at

    look_at(push_target(repo, shared), plan.key)


def begin_push(
    repo: str, checkpoint: Checkpoint, plan: Plan, shared: Shared
) -> tuple[Publication, Plan]:
    """Begin to publish, or go on with it; and the plan without what the hub already has.

    Raises:
        CtcliError: the hub does not take it, or another machine is, or was, at it.
    """
    from ctcli.storage.hub.publication import open_publication
    from ctcli.storage.hub.target import token

    made_here = read_journal(partial_of(plan.destination) / "journal", plan.key).complete
    typed = shlex.join(["ctcli", *sys.argv[1:]])
    card = card_of(checkpoint, typed, repo, token())
    publication = open_publication(push_target(repo, shared), plan.key, card)
    pushed = publication.pushed
    strange = pushed.keys() - made_here.keys()
    if strange and not (shared.resume_from_hub or publication.is_finished):
        raise CtcliError(
            f"{repo}: {len(strange)} files of this output are there already, from a run on "
            "another machine.",
            "Give --resume-from-hub to continue it once it has ended.",
        )
    if plan.settings.keeps:
        return publication, plan
    elsewhere = {name: file.errors for name, file in pushed.items()}
    plan = make_plan(plan.layout, plan.destination, plan.settings, elsewhere)
    check_resources(plan)  # a limit for the disk, too
    return publication, plan


def push_target(repo: str, shared: Shared) -> PushTarget:
    """Where on the hub, as the options have it."""
    from ctcli.storage.hub.target import PushTarget

    message = {"message": shared.commit_message} if shared.commit_message else {}
    return PushTarget(repo, shared.branch, shared.private, overwrite=shared.overwrite, **message)


def with_push(result: Result, repo: str, branch: str, commit: str | None) -> Result:
    """A result that also tells where it was, or would be, published."""
    place = f"hf://{repo}, branch {branch}" + (f", commit {commit}" if commit else "")
    data = {**result.data, "push": {"repo": repo, "branch": branch, "commit": commit}}
    label = "published" if commit else "to publish"
    return replace(result, rows=[*result.rows, (label, place)], data=data)
