"""What the hub client's exceptions mean, in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ctcli.errors import CtcliError
from ctcli.redaction import redact
from ctcli.storage.hub.guard import DISTRUST, guard_client
from ctcli.storage.hub.retries import ShortReadError, cause_of
from ctcli.storage.hub.xet import cause_in, disk_error_of, is_of_token, is_of_xet, status_of

_SAME_COMMAND = "Run the same command again: it continues where it stopped."
_NO_CACHE = "the hub cache cannot be used"
_CHECK_CACHE = "Check HF_HOME, its permissions and its disk."
_BY_STATUS: Mapping[int | None, tuple[str, str]] = {
    401: (
        "the hub does not accept your token",
        "Set HF_TOKEN to a valid token or run `hf auth login`.",
    ),
    403: (
        "your token does not allow this",
        "Use a token with the rights for it (to publish: write access to this repository).",
    ),
    404: (
        "the hub does not have it",
        "Look whether the repository changed or went away, then run the same command again.",
    ),
    412: (
        "somebody else changed it while this run was under way",
        "Nothing of theirs was replaced. Run the same command again: it looks at what is there "
        "now, and what was pushed is kept.",
    ),
}

# What the client raises; the last five when an answer is not the JSON that it takes for granted.
_RAISED = (
    *(httpx.HTTPError, HFValidationError, OSError, RuntimeError, ShortReadError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)


def silence_client() -> None:
    """Let the client draw and log nothing: its warnings would come on top of our report."""
    guard_client()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    huggingface_hub.utils.disable_progress_bars()


@contextmanager
def hub_errors(repo: str, revision: str | None = None, name: str | None = None) -> Iterator[None]:
    """Turn what the hub client raises inside the block into a `CtcliError`, without secrets.

    Args:
        repo: the repository.
        revision: the one asked for; with `name`, the commit or branch that the run is bound to.
        name: the file in question.
    """
    silence_client()
    try:
        yield
    except _RAISED as error:
        raise _explain(cause_of(error), repo, revision, name) from error


def _explain(error: BaseException, repo: str, revision: str | None, name: str | None) -> CtcliError:
    what = f"{repo}/{name}" if name else repo
    match error:
        case GatedRepoError():
            problem = f"{what}: the repository is gated and your token does not open it."
            hint = "Ask for access on its page, then set HF_TOKEN or run `hf auth login`."
        case RevisionNotFoundError() if name:
            problem = f"{what}: {revision}, with which this run began, is gone."
            hint = "Somebody rewrote the repository: run the same command again."
        case RevisionNotFoundError():
            problem = f"{repo}: there is no revision {revision!r}."
            hint = "Name a branch, a tag or a commit."
        case RepositoryNotFoundError() | HFValidationError():
            problem = f"{repo}: neither a directory here nor a model that the hub shows you."
            hint = "Check the spelling; for a private model set HF_TOKEN or run `hf auth login`."
        case LocalEntryNotFoundError():
            problem = f"{what}: not in the hub cache, and the hub cannot be asked."
            hint = "Unset HF_HUB_OFFLINE, or check HF_HOME and the network."
        case HfHubHTTPError() | httpx.HTTPError() | ShortReadError():
            problem, hint = _failed_request(error)
            problem = f"{what}: {problem}."
            if name is None and hint is _SAME_COMMAND:  # nothing has begun that could continue
                hint = "Check the spelling, the network and HF_ENDPOINT; then try again."
        case RuntimeError() | OSError() if is_of_xet(error):
            problem, hint = _failed_transfer(error)
            problem = f"{what}: {problem}."
        case OSError():
            problem, hint = f"{what}: {_NO_CACHE}: {error.strerror or error}.", _CHECK_CACHE
        case _:
            problem = f"{repo}: what answers is not a model hub: {_line(str(error), error)}."
            hint = DISTRUST
    return CtcliError(problem, hint)


def _failed_request(error: BaseException) -> tuple[str, str]:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = _line(error.server_message or str(error), error)
        problem, hint = _BY_STATUS.get(status, ("the hub did not deliver", _SAME_COMMAND))
        return f"{problem} ({status}): {said}", hint
    return f"the hub did not deliver: {_line(str(error), error)}", _SAME_COMMAND


def _failed_transfer(error: BaseException) -> tuple[str, str]:
    """Of the client's Rust part."""
    if number := disk_error_of(error):
        return f"{_NO_CACHE}: {os.strerror(number)}", _CHECK_CACHE
    problem, hint = "the hub's storage (Xet) did not deliver", _SAME_COMMAND
    if is_of_token(error):
        problem, hint = _BY_STATUS.get(status_of(error), (problem, hint))
    return f"{problem}: {cause_in(_line(str(error), error))}", hint


def _line(text: str, error: BaseException) -> str:
    first = text.strip().partition("\n")[0].rstrip(".")
    return redact(first, huggingface_hub.get_token()) or type(error).__name__
