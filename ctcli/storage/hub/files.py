"""Files of a checkpoint on a model hub, through huggingface_hub and its cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm

from ctcli import __version__
from ctcli.checkpoint.value import CONFIG_NAME
from ctcli.errors import CtcliError
from ctcli.lazy.tensors import SourceFile
from ctcli.storage.hub.checksum import Checksum
from ctcli.storage.hub.errors import hub_errors
from ctcli.storage.hub.guard import DISTRUST, is_plain
from ctcli.storage.hub.retries import (
    FEW_TRIES,
    Retries,
    ShortReadError,
    ignore,
    is_passing,
    retrying,
)
from ctcli.storage.local import list_local
from ctcli.units import Advance

CLIENT: dict[str, Any] = {"library_name": "ctcli", "library_version": __version__}


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository at one commit.

    Attributes:
        name: path inside the checkpoint, which may lie in a folder of the repository.
        folder: that folder, with a slash at its end; empty: the repository's top.
    """

    repo: str
    commit: str
    name: str
    size: int
    stamp: str
    checksum: Checksum | None
    folder: str = ""
    is_streamed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def place(self) -> str:
        """Path inside the repository."""
        return self.folder + self.name

    def read(self, start: int, nbytes: int) -> bytes:
        """Return `nbytes` bytes from `start`, from the cache or by a range request."""
        nbytes = min(nbytes, self.size - start)
        if nbytes <= 0:
            return b""
        if cached := self._cached():
            with cached.open("rb") as file:
                file.seek(start)
                return file.read(nbytes)
        with hub_errors(self.repo, self.commit, self.place):
            return retrying(lambda: b"".join(self.stream(start, start + nbytes)), Retries())

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop` in blocks, by one range request. Tries once.

        Raises:
            ShortReadError: the answer ended before.
            Exception: what the client raises.
        """
        left = stop - start
        with huggingface_hub.get_session().stream(
            "GET",
            huggingface_hub.hf_hub_url(self.repo, self.place, revision=self.commit),
            headers={
                **build_hf_headers(**CLIENT),
                "Range": f"bytes={start}-{stop - 1}",
                "Accept-Encoding": "identity",
            },
            follow_redirects=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ) as response:
            hf_raise_for_status(response)
            # A server may ignore the range and send the whole file.
            skip = 0 if response.status_code == 206 else start
            for received in response.iter_bytes():
                block = received[skip : skip + left]
                skip = max(0, skip - len(received))
                left -= len(block)
                if block:
                    yield block
                if not left:
                    return
        raise ShortReadError(f"{left:,} bytes are missing")

    def fetch(self, advance: Advance) -> Path:
        """Download the file into the hub cache, unless it is there, and return its path.

        Raises:
            CtcliError: the hub failed, or sent other content than it announced, twice.
        """
        with self._lock:
            if cached := self._cached():
                return cached
            meter, seen = _meter(advance)
            with hub_errors(self.repo, self.commit, self.place):
                path = self._download(self.commit, meter, advance)
            advance(self.size - seen())
            return path

    def _download(self, revision: str | None, meter: type[tqdm], advance: Advance) -> Path:
        """Have the client download the file; what does not have its hash is fetched afresh once."""
        for _ in range(2):
            retries = Retries(advance, passing=_is_left_to_us)
            path = Path(retrying(lambda: self._client_download(revision, meter), retries))
            # A branch may have moved on since the hash was told.
            is_other = self.commit not in path.parts
            if self.checksum is None or is_other or self.checksum.fits(path):
                return path
            blob = os.path.realpath(path)
            path.unlink()
            Path(blob).unlink(missing_ok=True)
        raise self.mismatch()

    def _client_download(self, revision: str | None, meter: type[tqdm]) -> str:
        try:
            return str(
                huggingface_hub.hf_hub_download(
                    self.repo, self.place, revision=revision, tqdm_class=meter, **CLIENT
                )
            )
        except OSError as error:
            # The client's word for a file that came out too short.
            if type(error) is OSError and error.errno is None:
                raise ShortReadError(str(error)) from error
            raise

    def mismatch(self) -> CtcliError:
        """The error for content that is not what the hub announced."""
        kind = "git hash" if self.checksum and self.checksum.is_git else "SHA-256"
        return CtcliError(
            f"{self.repo}/{self.place}: what arrives does not have the {kind} that the hub states, "
            "twice.",
            "Look whether a proxy or the disk spoils it; then run the same command again.",
        )

    def fetch_pieces(self, pieces: Sequence[range], advance: Advance) -> Path:  # noqa: ARG002
        """All of it, as it is not streamed."""
        return self.fetch(advance)

    def release(self) -> None:
        """The cache keeps what was fetched."""

    @property
    def location(self) -> Path:
        """The hub cache."""
        return Path(constants.HF_HUB_CACHE)

    @property
    def fetch_bytes(self) -> int:
        """Bytes that `fetch` has to download."""
        return 0 if self._cached() else self.size

    def _cached(self) -> Path | None:
        path = huggingface_hub.try_to_load_from_cache(self.repo, self.place, revision=self.commit)
        return Path(path) if isinstance(path, str) else None


def _is_left_to_us(error: BaseException) -> bool:
    """Whether another try may do better after an error that the client's downloads give up at."""
    tried = (httpx.ConnectError, httpx.TimeoutException, httpx.RemoteProtocolError)
    if isinstance(error, LocalEntryNotFoundError):
        return False
    # A HEAD that is cut off, however, it does not try again.
    return is_passing(error) and (not isinstance(error, tried) or error.request.method == "HEAD")


def list_hub(
    repo: str, revision: str | None, folder: str = ""
) -> tuple[dict[str, SourceFile], str]:
    """The files of a hub repository and the commit they are pinned to. Downloads no weights.

    With HF_HUB_OFFLINE, the files that the cache holds.

    Args:
        repo: the repository.
        revision: branch, tag or commit.
        folder: inside the repository, whose files alone are listed.

    Raises:
        CtcliError: unknown or gated repository, unknown revision, hub out of reach.
    """
    with hub_errors(repo, revision):
        if constants.is_offline_mode():
            return _list_cache(repo, revision, folder)
        files, commit = retrying(lambda: hub_files(repo, revision), Retries(tries=FEW_TRIES))
        files = _inside(files, folder) if folder else files
        if config := files.get(CONFIG_NAME):
            # By the revision's own name, so that the cache learns which commit it stands for.
            meter, _ = _meter(ignore)
            config._download(revision, meter, ignore)
    if not files:
        raise CtcliError(f"{repo}: it has no folder {folder}.", "Look at the repository's page.")
    return {name: file for name, file in files.items() if name != ".gitattributes"}, commit


def _inside(files: Mapping[str, HubFile], folder: str) -> dict[str, HubFile]:
    """The files of a folder, by path inside it."""
    start = f"{folder.strip('/')}/"
    return {
        name.removeprefix(start): replace(file, name=name.removeprefix(start), folder=start)
        for name, file in files.items()
        if name.startswith(start)
    }


def snapshot_of(files: Mapping[str, SourceFile], advance: Advance) -> Path:
    """Have all files of a checkpoint in the hub cache; returns the folder that they lie in there.

    Args:
        files: from `list_hub`.
        advance: told of bytes that were downloaded.

    Raises:
        CtcliError: the hub failed.
    """
    folder = Path()
    for name, file in files.items():
        folder = file.fetch(advance)
        for _ in name.split("/"):
            folder = folder.parent
    return folder


def hub_files(repo: str, revision: str | None) -> tuple[dict[str, HubFile], str]:
    """All files of a repository and the commit they are pinned to. Asks the hub once.

    Raises:
        Exception: what the client raises.
    """
    info = huggingface_hub.HfApi(**CLIENT).model_info(
        repo,
        revision=revision,
        files_metadata=True,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    commit, files = info.sha, {}
    if not (isinstance(commit, str) and is_plain(commit)):
        raise CtcliError(f"{repo}: the hub's commit is not a plain name: {commit!r}.", DISTRUST)
    for entry in info.siblings or ():
        digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
        checksum = Checksum(digest, entry.lfs is None) if digest else None
        name, size = entry.rfilename, entry.size or 0
        if not _is_inside(name):
            raise CtcliError(f"{repo}: a file's name leads out of it: {name!r}.", DISTRUST)
        if type(size) is not int or size < 0:
            raise CtcliError(f"{repo}: the hub's size of {name} is {size!r}.", DISTRUST)
        files[name] = HubFile(repo, commit, name, size, digest or commit, checksum)
    return files, commit


def _is_inside(name: Any) -> bool:
    """Whether a file's name, as a hub tells it, is a path inside the repository."""
    parts = name.split("/") if isinstance(name, str) and "\0" not in name else [""]
    return not {"", ".", ".."}.intersection(parts)


def _list_cache(repo: str, revision: str | None, folder: str) -> tuple[dict[str, SourceFile], str]:
    name = f"{folder}/{CONFIG_NAME}" if folder else CONFIG_NAME
    config = huggingface_hub.hf_hub_download(repo, name, revision=revision, local_files_only=True)
    snapshot = Path(config.removesuffix(name))
    return dict(list_local(snapshot / folder).files), snapshot.name


def _meter(advance: Advance) -> tuple[type[tqdm], Callable[[], int]]:
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
