"""Publishing a checkpoint on a hub, file by file, so that nobody ever sees half of it.

Finished files are committed to a working branch, together with a journal of what lies there. In
the end one commit on the branch to publish to takes them over, adds the small files and deletes
what it replaces; then the working branch goes.

Large content could also be uploaded without any commit and be named by a last one. But a hub may
drop content that no commit names, nobody can list it, and naming it needs the file at hand. From
a branch, the last commit copies it on the hub itself, when this disk has long lost it; and another
machine finds there, without any local state, what need not be made again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError

from ctcli import __version__
from ctcli.errors import CtcliError
from ctcli.interrupts import interrupted_means, run_is_done
from ctcli.redaction import redact
from ctcli.storage.errors_table import CARD, filled
from ctcli.storage.hub.branch import Branch
from ctcli.storage.hub.errors import hub_errors
from ctcli.storage.hub.files import CLIENT, hub_files
from ctcli.storage.hub.pushed import JOURNAL, Pushed, decode_pushed, encode_pushed
from ctcli.storage.hub.retries import Retries, ignore, retrying
from ctcli.storage.hub.target import ATTRIBUTES, PushTarget, Standing, look_at
from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import OutputFile
from ctcli.units import Advance

PERHAPS = (
    "interrupted while the hub was to publish the output: it may have. The same command finds out, "
    "and continues."
)


class Publication:
    """A checkpoint that is being published. Use `open_publication` to get one."""

    def __init__(
        self, api: HfApi, target: PushTarget, key: str, card: bytes, standing: Standing
    ) -> None:
        self._api = api
        self._target = target
        self._key = key
        self._card = card
        self._standing = standing
        self._work = Branch(api, target.repo, target.working_branch(key), standing.work or "")
        self._lock = threading.Lock()
        self._pushed: dict[str, Pushed] = {}
        self.commit: str | None = None

    def open(self) -> None:
        """Find what an earlier run left on the working branch, or begin that branch."""
        repo, work = self._target.repo, self._work
        if self._standing.work:
            there, _ = retrying(lambda: hub_files(repo, work.head), Retries())
            if JOURNAL in there:
                content = there[JOURNAL].read(0, there[JOURNAL].size)
                self._pushed = decode_pushed(content, self._key, there)
                return
        else:
            work.create(self._standing.parent)
        journal = CommitOperationAdd(JOURNAL, encode_pushed(self._key, ()))
        operations = [journal, CommitOperationAdd(CARD, self._card)]
        with card_errors():
            work.commit(operations, "Begin", work.name, ignore)

    @property
    def pushed(self) -> Mapping[str, Pushed]:
        """The files that lie on the hub already, by name: of this run, and of earlier ones."""
        with self._lock:
            return dict(self._pushed)

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run published everything and only had no time to clean up."""
        return self._standing.is_finished

    def takes(self, file: OutputFile) -> bool:
        """Whether a file goes ahead of the last commit."""
        return file.is_shard

    def push(self, name: str, path: Path, errors: ErrorSums, advance: Advance) -> None:
        """Upload a finished file; once this returns, the file at `path` may be deleted.

        May be called from several threads at once: content goes up side by side, commits one
        after the other.

        Args:
            name: path inside the checkpoint.
            path: the file.
            errors: what its derivation measured, to be found again by another run.
            advance: told of the file's bytes once they are on the hub; may raise to end the work
                between tries.

        Raises:
            CtcliError: the hub failed, or somebody else changes the working branch.
        """
        repo, work = self._target.repo, self._work
        with hub_errors(repo, work.name, name):
            addition = CommitOperationAdd(name, path)
            info = addition.upload_info
            retrying(
                lambda: self._api.preupload_lfs_files(repo, [addition], revision=work.name),
                Retries(advance),
            )
            file = Pushed(name, info.size, info.sha256.hex(), errors)
            with self._lock:
                every = {**self._pushed, name: file}
                journal = CommitOperationAdd(JOURNAL, encode_pushed(self._key, every.values()))
                note = f"{work.name}: {name} {file.sha256}"
                work.commit([addition, journal], f"Add {name}", note, advance)
                self._pushed = every
        advance(info.size)

    def finish(
        self,
        files: Mapping[str, bytes | Path],
        advance: Advance,
        then: Callable[[], None] = lambda: None,
    ) -> str:
        """Publish all that was pushed, and `files`, in one commit; return the commit.

        What else the branch holds is deleted. Every `push` must have returned before.

        Args:
            files: the small files; the model card takes the place of a `README.md` among them.
            advance: may raise to end the work between tries.
            then: called once everything is published, and before the working branch goes, by
                which a run that continues this one sees that it is.

        Raises:
            CtcliError: the hub failed, or somebody else changed the branch since this run began;
                it is as it was then, and the working branch keeps what was pushed.
        """
        target, standing = self._target, self._standing
        commit = standing.parent
        with hub_errors(target.repo, target.branch):
            if not standing.is_finished:
                branch = Branch(self._api, target.repo, target.branch, standing.parent)
                if not standing.has_branch:
                    branch.create(standing.parent)
                note = f"Made by ctcli {__version__}, collected on {self._work.name}."
                with interrupted_means(PERHAPS):
                    commit = branch.commit(self._last(files), target.message, note, advance)
        run_is_done()
        then()
        with hub_errors(target.repo, target.branch):
            self._work.delete()
        self.commit = commit
        return commit

    def _last(
        self, files: Mapping[str, bytes | Path]
    ) -> list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]:
        errors = {m: found for file in self._pushed.values() for m, found in file.errors.items()}
        new = {**files, CARD: filled(self._card, errors)}
        copied = [name for name in self._pushed if name not in new]
        gone = self._standing.names - {*new, *copied, ATTRIBUTES}
        return [
            *(CommitOperationCopy(name, name, src_revision=self._work.head) for name in copied),
            *(CommitOperationAdd(name, content) for name, content in new.items()),
            *(CommitOperationDelete(name) for name in sorted(gone)),
        ]


@contextmanager
def card_errors() -> Iterator[None]:
    """Within the block, a model card is committed, which the client has the hub check.

    Raises:
        CtcliError: the hub refuses its front matter.
    """
    try:
        yield
    except (HfHubHTTPError, json.JSONDecodeError):
        raise  # both are a ValueError, too
    except ValueError as error:
        said = redact(" ".join(str(error).split()), get_token())
        raise CtcliError(
            f"{CARD}: the hub refuses it: {said}",
            f"Correct the front matter of {CARD} in SRC: it is carried over.",
        ) from error


def open_publication(target: PushTarget, key: str, card: bytes) -> Publication:
    """Begin to publish, or go on with what an earlier run began.

    Makes the repository if need be. The hub judges the card now rather than after hours of work.

    Args:
        target: where to publish.
        key: identifies the output's bytes: what was pushed under another one does not count.
        card: the model card.

    Raises:
        CtcliError: see `look_at`; no rights; a card with front matter that the hub refuses.
    """
    target = replace(target, message=redact(target.message, get_token()))
    standing = look_at(target, key)
    api = HfApi(**CLIENT)
    if standing.is_private is None:
        with hub_errors(target.repo):
            retrying(
                lambda: api.create_repo(target.repo, private=target.private or None, exist_ok=True),
                Retries(),
            )
        standing = look_at(target, key)
    publication = Publication(api, target, key, card, standing)
    with hub_errors(target.repo, target.branch):
        publication.open()
    return publication
