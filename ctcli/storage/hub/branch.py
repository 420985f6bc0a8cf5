"""A branch that nobody else is expected to change."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ctcli.storage.hub.retries import Retries, retrying
from ctcli.units import Advance

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


class Branch:
    """A branch, and the commit that it is known to stand at; empty: there is no branch.

    Every commit is made on that one only. The client does not try a commit again, since one whose
    answer got lost would be made twice; here, the branch is looked at first.
    """

    def __init__(self, api: HfApi, repo: str, name: str, head: str) -> None:
        self._api = api
        self._repo = repo
        self.name = name
        self.head = head

    def commit(
        self, operations: Sequence[CommitOperation], title: str, note: str, advance: Advance
    ) -> str:
        """Commit `operations`, once, and return the commit.

        Args:
            operations: what to change. Those that add files are used up.
            title: first line of the message.
            note: the rest of it; two commits on one parent with the same note are the same.
            advance: may raise to end the work between tries.

        Raises:
            Exception: what the client raises; status 412 if somebody else changed the branch.
        """
        tried = False

        def attempt() -> str:
            nonlocal tried
            if tried and (made := self._made(note)):
                return made
            tried = True
            info = self._api.create_commit(
                self._repo,
                operations,
                commit_message=title,
                commit_description=note,
                revision=self.name,
                parent_commit=self.head,
            )
            return str(info.oid)

        self.head = retrying(attempt, Retries(advance))
        return self.head

    def create(self, head: str) -> None:
        """Let it begin at a commit, unless it is there."""
        retrying(
            lambda: self._api.create_branch(
                self._repo, branch=self.name, revision=head, exist_ok=True
            ),
            Retries(),
        )
        self.head = head

    def delete(self) -> None:
        """Delete it, unless it is gone."""

        def attempt() -> None:
            try:
                self._api.delete_branch(self._repo, branch=self.name)
            except HfHubHTTPError as error:
                if error.response.status_code != 404:  # an answer that got lost
                    raise

        retrying(attempt, Retries())

    def _made(self, note: str) -> str | None:
        """The commit with this note, if an attempt without an answer made it after all."""
        history = self._api.list_repo_commits(self._repo, revision=self.name)
        last, before = history[0], history[1:2]
        is_ours = note in last.message and [c.commit_id for c in before] == [self.head]
        return last.commit_id if is_ours else None
