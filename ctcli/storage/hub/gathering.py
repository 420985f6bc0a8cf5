"""The branch of a hub on which the files of several processes meet, and how they are published.

Each process commits its complete files, whatever the others do meanwhile. So that no file of
another plan gets among them, every commit is made on a head whose plan was seen to be the same.
Whoever finds all files there publishes them in one commit; the hub takes that only once.

    ctcli-parts-.../
        README.md                      the model card
        ctcli_parts/plan.json          what all have agreed on
        ctcli_parts/measured/*.json    what was measured of the modules of a file
        ...                            the files that are complete
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from ctcli.errors import CtcliError
from ctcli.interrupts import interrupted_means, run_is_done
from ctcli.redaction import redact
from ctcli.storage.agreement import HINT, NO_PARTS, Agreement
from ctcli.storage.destination import partial_of
from ctcli.storage.errors_table import CARD, filled
from ctcli.storage.gathering import OverError
from ctcli.storage.hub.branch import Branch, CommitOperation
from ctcli.storage.hub.errors import hub_errors
from ctcli.storage.hub.files import CLIENT, HubFile, hub_files
from ctcli.storage.hub.publication import PERHAPS, card_errors
from ctcli.storage.hub.retries import FEW_TRIES, Retries, ignore, retrying
from ctcli.storage.hub.target import ATTRIBUTES, PushTarget, Standing, look_at, token
from ctcli.storage.journal import ErrorSums
from ctcli.storage.layout import OutputFile
from ctcli.units import Advance

_FOLDER = "ctcli_parts"
_PLAN = f"{_FOLDER}/plan.json"
_CHANGED = (409, 412)  # another commit came first
_PAUSE_SECONDS = 2.0  # at most, before a commit is made on a head that is newer


class HubGathering:
    """The common branch; see `engine.shares.Meeting`.

    Args:
        target: where to publish.
        agreement: what this process would make.
        card: the model card; None: another process has begun the branch.
    """

    def __init__(self, target: PushTarget, agreement: Agreement, card: bytes | None = None) -> None:
        self.commit: str | None = None
        self._target = replace(target, message=redact(target.message, token()))
        self.agreement = agreement
        self._card = card
        self._api = HfApi(**CLIENT)
        self._work = Branch(self._api, target.repo, target.shared_branch, "")
        self._there: Mapping[str, HubFile] = {}
        self._taken: dict[str, ErrorSums] = {}
        self._lock = threading.Lock()

    def is_made(self) -> bool:
        """Whether the branch to publish on is what the plan makes of it."""
        return self._look().is_finished

    def look(self, names: Collection[str]) -> None:
        """See which files of a share are complete. Changes nothing.

        Raises:
            CtcliError: the branch is for another plan, or what is published must not be replaced.
        """
        self._look()
        self._taken = {name: {} for name in names if self._is_complete(name)}

    def join(self) -> None:
        """Begin the common branch, or see that it is for the same plan.

        Raises:
            OverError: the checkpoint is published.
            CtcliError: the branch is for another plan; or see `look_at`.
        """
        with hub_errors(self._target.repo, self._target.branch):
            standing = self._look()
            if standing.is_private is None:
                self._create_repository()
                standing = self._look()
            while not (standing.is_finished or _PLAN in self._there):
                self._begin(standing)
                standing = self._look()
            if standing.is_finished:
                self._work.delete()
                raise OverError(self._target.repo)

    @property
    def pushed(self) -> Mapping[str, ErrorSums]:
        """The complete files of this process's share."""
        with self._lock:
            return dict(self._taken)

    def takes(self, file: OutputFile) -> bool:
        """Whether a file goes there as soon as it is complete; small ones go together."""
        return file.is_shard

    def push(self, name: str, path: Path, errors: ErrorSums, advance: Advance) -> None:
        """Upload a complete file; once this returns, the file at `path` may be deleted.

        Raises:
            OverError: the checkpoint is published, with the same file made elsewhere.
            CtcliError: the hub failed, or the branch is for another plan now.
        """
        addition = CommitOperationAdd(name, path)
        with hub_errors(self._target.repo, self._work.name, name):
            self._upload([addition], advance)
            measured = json.dumps(errors).encode()
            note = CommitOperationAdd(_measured(name), measured)
            self._commit([name], [addition, note] if errors else [addition], advance)
        with self._lock:
            self._taken[name] = errors
        advance(addition.upload_info.size)

    def finish(
        self,
        files: Mapping[str, bytes | Path],
        advance: Advance,
        then: Callable[[], None],  # noqa: ARG002
    ) -> str:
        """Commit the small files of this share; nothing is published."""
        new = {n: content for n, content in files.items() if n not in self._taken and n != CARD}
        operations = [CommitOperationAdd(name, content) for name, content in new.items()]
        if operations:
            with hub_errors(self._target.repo, self._work.name):
                self._upload(operations, advance)
                self._commit([*new], operations, advance)
            advance(sum(each.upload_info.size for each in operations))
        return ""

    def watching(self, advance: Advance) -> Advance:
        """`advance`: whether others have published is seen with the next file."""
        return advance

    def has(self, names: Collection[str]) -> bool:
        """Whether these files are complete, whoever made them, or the checkpoint is published."""
        return self._look().is_finished or all(map(self._is_complete, names))

    def leave(self, attempt: Path) -> None:
        """Delete what an attempt made on this disk."""
        shutil.rmtree(partial_of(attempt), ignore_errors=True)

    def missing(self) -> list[str]:
        """The files that nobody has completed yet; none once the checkpoint is published."""
        if self._look().is_finished:
            return []
        return [name for name in self.agreement.files if not self._is_complete(name)]

    def publish(self) -> ErrorSums:
        """Publish all files in one commit, unless another process does, and delete the branch.

        Returns:
            What was measured of every module; nothing if another process has published.

        Raises:
            CtcliError: the hub failed, or somebody else changed the branch to publish on.
        """
        target, standing, errors = self._target, self._look(), dict[str, Sequence[float]]()
        with hub_errors(target.repo, target.branch):
            try:
                if not standing.is_finished:
                    for name in self.agreement.files:
                        errors |= self._errors(name)
                    with interrupted_means(PERHAPS):
                        self._publish(standing, errors)
            except (HfHubHTTPError, CtcliError):
                if not self._look().is_finished:
                    raise
            run_is_done()
            self.commit = self._look().parent
            self._work.delete()
        return errors

    def check_writing(self) -> None:
        """See whether this process may write there. Changes nothing.

        Raises:
            CtcliError: it may not, or does not see the branch.
        """
        self._look()
        self._check_begun()
        with hub_errors(self._target.repo, self._work.name):
            # A hub refuses to say how a file is to be uploaded to those who may not upload it.
            self._upload([CommitOperationAdd(f"{_FOLDER}/probe", b"-")], ignore)

    def give_up(self) -> None:
        """Delete the branch of a job that came to nothing, unless there is something on it."""
        with suppress(CtcliError), hub_errors(self._target.repo, self._work.name):
            if self._look().work and not self._there.keys() & {*self.agreement.files} - {CARD}:
                self._work.delete()

    def _look(self) -> Standing:
        """See what is there now, and that it is for the same plan."""
        target = self._target
        with hub_errors(target.repo, target.branch), self._lock:
            while True:
                standing = look_at(target, self.agreement.key, is_shared=True)
                try:
                    there = _files(target.repo, standing.work) if standing.work else {}
                    break
                except RevisionNotFoundError:  # it has just been deleted
                    continue
            found, before = there.get(_PLAN), self._there.get(_PLAN)
            if found and (before is None or found.checksum != before.checksum):
                self._check(_decoded(found, target)[0])
            self._work.head, self._there = standing.work or "", there
        return standing

    def _check(self, there: Agreement) -> None:
        if differences := there.differences(self.agreement):
            where = f"{self._target.repo}: the parts there are of another plan"
            hint = HINT.replace("the folder", f"the branch {self._work.name}")
            raise CtcliError([f"{where}: {each}" for each in differences], hint)

    def _check_begun(self) -> None:
        if _PLAN not in self._there:
            raise CtcliError(
                f"{self._target.repo}: its branch {self._work.name} is not there.",
                "Make all parts again, and leave that branch alone.",
            )

    def _create_repository(self) -> None:
        repo, private = self._target.repo, self._target.private or None
        retrying(
            lambda: self._api.create_repo(repo, private=private, exist_ok=True),
            Retries(),
        )

    def _begin(self, standing: Standing) -> None:
        """Write the plan down, unless another process does at this moment."""
        if self._card is None:
            self._check_begun()
        if not standing.work:
            self._work.create(standing.parent)
        told = {"message": self._target.message, "agreement": json.loads(self.agreement.encode())}
        contents = {_PLAN: json.dumps(told).encode(), CARD: self._card or b""}
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        try:
            with card_errors():
                self._work.commit(operations, "Begin", self._work.name, ignore)
        except HfHubHTTPError as error:
            if error.response.status_code not in _CHANGED:
                raise

    def _upload(self, additions: Sequence[CommitOperationAdd], advance: Advance) -> None:
        repo, name = self._target.repo, self._work.name
        retrying(
            lambda: self._api.preupload_lfs_files(repo, additions, revision=name),
            Retries(advance),
        )

    def _commit(
        self, names: Collection[str], operations: Sequence[CommitOperationAdd], advance: Advance
    ) -> None:
        """Commit files, on whatever others have committed before.

        Raises:
            OverError: the checkpoint is published.
        """
        title = f"Add {', '.join(names)}"[:72]
        note = f"{self._work.name}: {' '.join(e.upload_info.sha256.hex() for e in operations)}"
        while True:
            try:
                with self._lock:
                    self._work.commit(operations, title, note, advance)
                return
            except HfHubHTTPError as error:
                # 404: the branch is gone, so that the others may have published.
                if error.response.status_code not in (*_CHANGED, 404):
                    raise
            advance(0)
            time.sleep(random.uniform(0, _PAUSE_SECONDS))
            if self._look().is_finished:
                raise OverError(self._target.repo)
            self._check_begun()
            if all(map(self._is_complete, names)):
                return

    def _publish(self, standing: Standing, errors: ErrorSums) -> None:
        target, head = self._target, self._work.head
        branch = Branch(self._api, target.repo, target.branch, standing.parent)
        if not standing.has_branch:
            branch.create(standing.parent)
        made = {*self.agreement.files} - {CARD}
        gone = standing.names - {*made, CARD, ATTRIBUTES}
        card = self._there.get(CARD)
        said = [CommitOperationAdd(CARD, filled(card.read(0, card.size), errors))] if card else []
        operations: list[CommitOperation] = [
            *(CommitOperationCopy(name, name, src_revision=head) for name in sorted(made)),
            *said,
            *(CommitOperationDelete(name) for name in sorted(gone)),
        ]
        note = target.shared_note(self.agreement.key)
        branch.commit(operations, target.message, note, ignore)

    def _errors(self, name: str) -> ErrorSums:
        file = self._there.get(_measured(name))
        found: ErrorSums = json.loads(file.read(0, file.size)) if file else {}
        return found

    def _is_complete(self, name: str) -> bool:
        if name == CARD:
            return name in self._there
        file = self._there.get(name)
        return file is not None and file.size == self.agreement.sizes[name]


def find_gathering(target: PushTarget) -> HubGathering | None:
    """The common branch of a checkpoint that is made in parts; None: it is published.

    Args:
        target: the repository, and the branch to publish on.

    Raises:
        CtcliError: there are no parts; or another version of ctcli began it.
    """
    api, plan = HfApi(**CLIENT), None
    with hub_errors(target.repo, target.branch):
        refs = retrying(lambda: api.list_repo_refs(target.repo), Retries(tries=FEW_TRIES))
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        if target.shared_branch in heads:
            plan = _files(target.repo, heads[target.shared_branch]).get(_PLAN)
        elif target.branch in heads:
            last = api.list_repo_commits(target.repo, revision=heads[target.branch])[0]
            if target.shared_branch in last.message:
                return None
    if plan is None:
        raise CtcliError(
            f"hf://{target.repo}: no parts of it lie there for its branch {target.branch}.",
            NO_PARTS,
        )
    agreement, message = _decoded(plan, target)
    overwrite = agreement.settings["overwrite"]
    found = replace(target, message=message, overwrite=overwrite)
    return HubGathering(found, agreement)


def _files(repo: str, commit: str) -> dict[str, HubFile]:
    files, _ = retrying(lambda: hub_files(repo, commit), Retries())
    return files


def _decoded(plan: HubFile, target: PushTarget) -> tuple[Agreement, str]:
    """What has been agreed on, and the message of the commit that is to publish it."""
    try:
        told = json.loads(plan.read(0, plan.size))
        return Agreement.decode(json.dumps(told["agreement"]).encode()), str(told["message"])
    except (ValueError, TypeError, LookupError) as error:
        where = f"{target.repo}, branch {target.shared_branch}"
        raise CtcliError(f"{where}: it is of another version of ctcli.", HINT) from error


def _measured(name: str) -> str:
    return f"{_FOLDER}/measured/{name}.json"
