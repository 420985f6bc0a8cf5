"""Where on a hub a checkpoint is to be published, and what is there already."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ctcli import __version__
from ctcli.errors import CtcliError
from ctcli.storage.hub.errors import hub_errors
from ctcli.storage.hub.files import CLIENT
from ctcli.storage.hub.retries import FEW_TRIES, Retries, retrying

ATTRIBUTES = ".gitattributes"
MAIN = "main"


@dataclass(frozen=True)
class PushTarget:
    """What to publish to.

    Attributes:
        repo: the repository, `org/name`; it need not exist yet.
        branch: the branch; it need not exist yet.
        private: make the repository private; refused if it exists and is not.
        message: first line of the commit that publishes.
        overwrite: replace what the branch holds.
    """

    repo: str
    branch: str = MAIN
    private: bool = False
    message: str = "Upload a checkpoint made by ctcli"
    overwrite: bool = False

    def working_branch(self, key: str) -> str:
        """The branch on which the output of the run `key` is collected."""
        return "ctcli-partial-" + _digest(f"{self.branch}\0{key}")

    @property
    def shared_branch(self) -> str:
        """The branch on which several processes collect it, whatever their plan is."""
        return f"ctcli-parts-{_digest(self.branch)}"

    def shared_note(self, key: str) -> str:
        """What the commit that publishes says if several processes have made it."""
        return (
            f"Made by ctcli {__version__}, collected on {self.shared_branch}, plan {_digest(key)}."
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Standing:
    """What is at a target.

    Attributes:
        is_private: of the repository; None if there is no such repository.
        parent: the commit to publish on: the branch's head, or where a new branch will begin.
        has_branch: whether the branch exists.
        names: the files at `parent`.
        work: head of the working branch, if there is one.
        is_finished: whether `parent` is what the run itself published before it died.
    """

    is_private: bool | None
    parent: str = ""
    has_branch: bool = False
    names: frozenset[str] = frozenset()
    work: str | None = None
    is_finished: bool = False


def look_at(target: PushTarget, key: str, is_shared: bool = False) -> Standing:
    """See what is at `target`, and refuse what must not be done to it. Changes nothing.

    Args:
        target: where to publish.
        key: identifies the output's bytes.
        is_shared: whether several processes make it.

    Raises:
        CtcliError: no token, files that would be lost, a public repository asked to be private.
    """
    if huggingface_hub.get_token() is None:
        raise CtcliError(
            f"{target.repo}: publishing needs a token.", "Set HF_TOKEN or run `hf auth login`."
        )
    with hub_errors(target.repo, target.branch):
        standing = retrying(lambda: _ask(target, key, is_shared), Retries(tries=FEW_TRIES))
    if target.private and standing.is_private is False:
        raise CtcliError(
            f"{target.repo}: it exists and is public.",
            "Make it private in its settings, leave --private out, or choose another name.",
        )
    held = standing.has_branch and standing.names - {ATTRIBUTES}
    if held and not (target.overwrite or standing.is_finished):
        raise CtcliError(
            f"{target.repo}: its branch {target.branch} holds {len(held)} files.",
            "Give --overwrite to replace them, or choose another --branch or name.",
        )
    return standing


def _ask(target: PushTarget, key: str, is_shared: bool) -> Standing:
    api = HfApi(**CLIENT)
    try:
        branches = api.list_repo_refs(target.repo).branches
    except RepositoryNotFoundError:
        return Standing(None)
    heads = {branch.name: branch.target_commit for branch in branches}
    working_branch = target.shared_branch if is_shared else target.working_branch(key)
    noted = target.shared_note(key).partition("collected")[2] if is_shared else working_branch
    head, work = heads.get(target.branch), heads.get(working_branch)
    # A new branch begins where the repository began: with nothing, on a hub.
    parent = head or api.list_repo_commits(target.repo, revision=MAIN)[-1].commit_id
    info = api.model_info(target.repo, revision=parent)
    finished = False
    if head and (work or is_shared):
        last = api.list_repo_commits(target.repo, revision=head)[0]
        finished = noted in last.message
    names = frozenset(entry.rfilename for entry in info.siblings or ())
    return Standing(bool(info.private), parent, head is not None, names, work, finished)


def token() -> str | None:
    """The token in use, which must appear nowhere."""
    return huggingface_hub.get_token()
