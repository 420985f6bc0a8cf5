"""The hub itself: its repositories, its faults and the record of what it was asked for."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.helpers.hub.faults import Fault, Request
from tests.helpers.hub.repository import Blobs, Commit, Repo, name_of
from tests.helpers.hub.server import Server
from tests.helpers.processes import HANG_SECONDS


@dataclass(eq=False)
class Hook:
    """Something to do when the `left`-th request from now on arrives that `matches`."""

    matches: Callable[[Request], bool]
    action: Callable[[], object]
    left: int

    def is_due(self, request: Request) -> bool:
        """Count a request, if it matches; whether it is the one."""
        if not self.matches(request):
            return False
        self.left -= 1
        return self.left == 0


class Hub:
    """The server with its repositories, its faults and the record of what it was asked for."""

    token = "hf_the_one_good_token"
    reader_token = "hf_the_reading_token"  # opens everything and may change nothing
    namespaces = frozenset({"org", "tester"})  # where the good token may make repositories

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.jobs: list[Mapping[str, Any]] = []  # as they were submitted; nothing runs them
        self.part_bytes: int | None = None  # larger uploads come in parts of so many bytes
        self.is_xet = False  # whether large files lie in Xet storage, for clients that know it
        self.storage: str | None = None  # what the hub says of where that is, if not here
        self.xorbs: dict[str, Sequence[bytes]] = {}  # chunks that were brought there
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._idle, self._answered_now = threading.Condition(), 0
        self._hooks: list[Hook] = []
        self._requests: list[Request] = []
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True)
        self.blobs = Blobs(Path(self._folder.name))
        self._server = Server(self)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        # Another name for this server: the client follows a HEAD's redirect within a host, but
        # takes the metadata from the redirect itself, and leaves its token behind, if it leads
        # to another host, as a CDN is.
        self.elsewhere = f"http://localhost:{self.port}"
        # A short poll, as closing waits for the next one.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and drop all content."""
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def add(
        self,
        repo_id: str,
        folder: Path,
        *,
        branch: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Commit the folder as the whole content of a branch and return the commit's sha.

        Files are copied, so earlier commits outlive changes to the folder. The sha depends on
        content alone. ``gated`` and ``private`` hold for the repository from now on.
        """
        sources = {
            source.relative_to(folder).as_posix(): source
            for source in sorted(folder.rglob("*"))
            if source.is_file()
        }
        tree = {path: self.blobs.store(path, source) for path, source in sources.items()}
        sha = name_of(tree)
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo())
            repo.gated, repo.private = gated, private
            repo.put(branch, sha, Commit(tree, repo.branches.get(branch), "Add files"))
        return sha

    def contents(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the bytes of all files at a branch or commit."""
        with self.lock:
            repo = self.repos[repo_id]
            tree = repo.commits[repo.branches.get(revision, revision)].tree
        return {path: self.blobs.path(file.sha256).read_bytes() for path, file in tree.items()}

    def env(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return environment variables that lead a process's hub client here and nowhere else.

        Those that could lead it astray (another token, cache, proxy, offline mode) are set too,
        so the result can be laid over ``os.environ``.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN": token or "",
            "HF_TOKEN_PATH": str(home / "token"),
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.is_xet else "1",
            "HF_XET_CACHE": str(home / "xet"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(int(HANG_SECONDS)),
            "HF_HUB_ETAG_TIMEOUT": str(int(HANG_SECONDS)),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def inject(self, *faults: Fault) -> None:
        """Let these things go wrong from now on; of several that apply, the first one does."""
        with self.lock:
            self._faults.extend(faults)

    def heal(self) -> None:
        """Forget all faults."""
        with self.lock:
            self._faults.clear()

    def take_fault(self, method: str, path: str, span: range | None = None) -> Fault | None:
        """Find the fault that hits this request and count it as used."""
        with self.lock:
            for fault in self._faults:
                if fault.applies(method, path, span):
                    fault.times -= 1
                    return fault
        return None

    @contextmanager
    def on(
        self,
        matches: Callable[[Request], bool],
        action: Callable[[], object],
        *,
        nth: int = 1,
    ) -> Iterator[None]:
        """Within the block, call `action` once: when the n-th request that matches has arrived.

        It is called before the request is answered, in the thread that answers it. The record
        holds the request already when ``matches`` is asked.
        """
        hook = Hook(matches, action, nth)
        with self.lock:
            self._hooks.append(hook)
        try:
            yield
        finally:
            with self.lock:
                self._hooks.remove(hook)

    def record(self, request: Request) -> None:
        """Note a request, and do what is to be done before it is answered."""
        with self.lock:
            self._requests.append(request)
            due = [hook for hook in self._hooks if hook.is_due(request)]
        for hook in due:
            hook.action()

    def count(self, path: str, *, sent: int = 0, received: int = 0) -> None:
        """Note body bytes about to be sent, or received."""
        with self.lock:
            self._sent[path] += sent
            self._received[path] += received

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block a request is being answered."""
        with self._idle:
            self._answered_now += 1
        try:
            yield
        finally:
            with self._idle:
                self._answered_now -= 1
                self._idle.notify_all()

    def settle(self) -> None:
        """Wait until every request that has arrived is answered: what is changed then is not."""
        with self._idle:
            assert self._idle.wait_for(lambda: not self._answered_now, HANG_SECONDS)

    def forget(self) -> None:
        """Start the record of requests and bytes anew."""
        with self.lock:
            self._requests.clear()
            self._sent.clear()
            self._received.clear()

    def requests(self, path_suffix: str = "", *, method: str | None = None) -> list[Request]:
        """Return the requests so far, in order of arrival."""
        with self.lock:
            seen = list(self._requests)
        return [r for r in seen if r.path.endswith(path_suffix) and method in (None, r.method)]

    def bytes_sent(self, path_suffix: str = "") -> int:
        """Return how many body bytes were sent for paths that end so.

        Bytes count once they go to the socket, so a client that hung up may have seen fewer.
        """
        with self.lock:
            return sum(size for path, size in self._sent.items() if path.endswith(path_suffix))

    def bytes_received(self, path_prefix: str = "/storage/") -> int:
        """Return how many bytes of large files came in, those of broken uploads included."""
        with self.lock:
            return sum(n for path, n in self._received.items() if path.startswith(path_prefix))
