"""Files of a checkpoint on a model hub, through huggingface_hub and its cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, http_backoff, tqdm

from ctcli import __version__
from ctcli.checkpoint import CONFIG_NAME
from ctcli.errors import CtcliError
from ctcli.storage.local import LocalFile, list_local
from ctcli.tensors import SourceFile
from ctcli.units import Advance

_CLIENT: dict[str, Any] = {"library_name": "ctcli", "library_version": __version__}


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository at one commit."""

    repo: str
    commit: str
    name: str
    size: int
    stamp: str
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def read(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `start`, from the cache or by a range request."""
        nbytes = min(nbytes, self.size - start)
        if nbytes <= 0:
            return b""
        if cached := self._cached():
            with cached.open("rb") as file:
                file.seek(start)
                return file.read(nbytes)
        with _hub_errors(self.repo, self.commit, self.name):
            response = http_backoff(
                "GET",
                huggingface_hub.hf_hub_url(self.repo, self.name, revision=self.commit),
                headers={
                    **build_hf_headers(**_CLIENT),
                    "Range": f"bytes={start}-{start + nbytes - 1}",
                },
                follow_redirects=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
            huggingface_hub.utils.hf_raise_for_status(response)
        # A server may ignore the range and send the whole file.
        content = response.content
        return content if response.status_code == 206 else content[start : start + nbytes]

    def fetch(self, advance: Advance) -> Path:
        """Download the file into the hub cache, unless it is there, and return its path."""
        with self._lock:
            if cached := self._cached():
                return cached
            meter, seen = _meter(advance)
            with _hub_errors(self.repo, self.commit, self.name):
                path = huggingface_hub.hf_hub_download(
                    self.repo, self.name, revision=self.commit, tqdm_class=meter, **_CLIENT
                )
            advance(self.size - seen())
            return Path(path)

    @property
    def location(self) -> Path:
        """The hub cache."""
        return Path(constants.HF_HUB_CACHE)

    @property
    def fetch_bytes(self) -> int:
        """Bytes that `fetch` has to download."""
        return 0 if self._cached() else self.size

    def _cached(self) -> Path | None:
        path = huggingface_hub.try_to_load_from_cache(self.repo, self.name, revision=self.commit)
        return Path(path) if isinstance(path, str) else None


def list_hub(repo: str, revision: str | None) -> tuple[dict[str, SourceFile], str]:
    """The files of a hub repository and the commit they are pinned to. Downloads nothing.

    With HF_HUB_OFFLINE, the files that the cache holds.

    Raises:
        CtcliError: unknown or gated repository, unknown revision, hub out of reach.
    """
    with _hub_errors(repo, revision, None):
        if constants.is_offline_mode():
            return _list_cache(repo, revision)
        api = huggingface_hub.HfApi(**_CLIENT)
        info = api.model_info(
            repo,
            revision=revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        if any(entry.rfilename == CONFIG_NAME for entry in info.siblings or ()):
            # By the revision's own name, so that the cache learns which commit it stands for.
            huggingface_hub.hf_hub_download(repo, CONFIG_NAME, revision=revision, **_CLIENT)
    commit = str(info.sha)
    files: dict[str, SourceFile] = {
        entry.rfilename: HubFile(
            repo,
            commit,
            entry.rfilename,
            entry.size or 0,
            (entry.lfs.sha256 if entry.lfs else entry.blob_id) or commit,
        )
        for entry in info.siblings or ()
        if entry.rfilename != ".gitattributes"
    }
    return files, commit


def _list_cache(repo: str, revision: str | None) -> tuple[dict[str, SourceFile], str]:
    config = huggingface_hub.hf_hub_download(
        repo, CONFIG_NAME, revision=revision, local_files_only=True
    )
    snapshot = Path(config).parent
    local: dict[str, LocalFile] = list_local(snapshot)
    return dict(local), snapshot.name


def _meter(advance: Advance) -> tuple[type[tqdm], Any]:
    """A progress bar class that draws nothing and reports to `advance`; and its count so far."""
    seen = 0

    class Meter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal seen
            seen += int(n or 0)
            advance(int(n or 0))

    return Meter, lambda: seen


@contextmanager
def _hub_errors(repo: str, revision: str | None, name: str | None) -> Iterator[None]:
    """Say in one line what the hub client's exceptions mean."""
    what = f"{repo}/{name}" if name else repo
    # The client logs its retries as warnings of its own, on top of our report.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    huggingface_hub.utils.disable_progress_bars()
    try:
        yield
    except GatedRepoError as error:
        raise CtcliError(
            f"{what}: the repository is gated and your token does not open it.",
            "Ask for access on its page, then set HF_TOKEN or run `hf auth login`.",
        ) from error
    except RevisionNotFoundError as error:
        raise CtcliError(
            f"{repo}: there is no revision {revision!r}.", "Name a branch, a tag or a commit."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CtcliError(
            f"{repo}: neither a directory here nor a model that the hub shows you.",
            "Check the spelling; for a private model set HF_TOKEN or run `hf auth login`.",
        ) from error
    except LocalEntryNotFoundError as error:
        raise CtcliError(
            f"{what}: not in the hub cache, and the hub cannot be asked.",
            "Unset HF_HUB_OFFLINE, or check HF_HOME and the network.",
        ) from error
    except (HfHubHTTPError, httpx.HTTPError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CtcliError(
            f"{what}: the hub did not deliver: {first_line or type(error).__name__}.",
            "Run the same command again: it continues where it stopped.",
        ) from error
    except OSError as error:
        raise CtcliError(
            f"{what}: the hub cache cannot be used: {error.strerror or error}.",
            "Check HF_HOME, its permissions and its disk.",
        ) from error
