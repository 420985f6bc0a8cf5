"""A small model hub on 127.0.0.1, for tests.

The real ``huggingface_hub`` client talks to it when ``HF_ENDPOINT`` points at it. Tests thus
exercise the client's own requests, redirects and retries, and can break the transfer at will,
without any network. It serves models only and is read-only: a new endpoint is a row in
``_ROUTES`` and a method of ``_Handler``.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

_BLOCK = 1 << 20  # files are hashed, copied and sent in pieces of this size
_sha1 = partial(hashlib.sha1, usedforsecurity=False)  # git's choice of names, no safeguard


@dataclass(frozen=True)
class Request:
    """What one request asked for; ``path`` is decoded and without its query."""

    method: str
    path: str
    range: str | None
    authorized: bool  # an Authorization header was there, good or bad


@dataclass
class Fault:
    """Something that goes wrong with the first ``times`` requests that it applies to.

    With ``status``, the request is answered by this error, without a look at what it asks for.
    The other effects touch the bytes of a file being sent and may be combined; a request whose
    range is too short for the fault to show in is served well and does not count.
    """

    path_suffix: str
    times: int = 1
    path_prefix: str = "/"  # "/cdn/" for large files' bytes only, not for the redirect to them
    method: str | None = None
    status: int | None = None
    retry_after: int | None = None  # seconds, sent along with status
    after_bytes: int | None = None  # drop the connection after so much of the body
    flip_at: int | None = None  # send this byte, counted from the file's start, inverted
    rate: int | None = None  # bytes per second

    def applies(self, method: str, path: str, span: range | None) -> bool:
        """Whether to hit this request; ``span`` is the part of a file about to be sent, if any."""
        if self.times < 1 or self.method not in (None, method):
            return False
        if not (path.startswith(self.path_prefix) and path.endswith(self.path_suffix)):
            return False
        if span is None or self.status is not None:
            return span is None and self.status is not None
        breaks = self.after_bytes is None or self.after_bytes < len(span)
        return breaks and (self.flip_at is None or self.flip_at in span)


@dataclass(frozen=True)
class _File:
    """One file of a commit, with the names that git and LFS give to its content."""

    path: str
    size: int
    sha256: str
    oid: str  # git blob id: of the content, or of the LFS pointer standing in for it
    pointer_size: int | None  # None: not in LFS

    def describe(self, name: str, oid: str, sha256: str) -> dict[str, Any]:
        """Describe the file in JSON; endpoints differ in how they call these three fields."""
        entry = {"type": "file", name: self.path, "size": self.size, oid: self.oid}
        if self.pointer_size is None:
            return entry
        lfs = {sha256: self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {**entry, "lfs": lfs}


_Tree = Mapping[str, _File]


@dataclass
class _Repo:
    gated: bool
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, _Tree] = field(default_factory=dict)


class Hub:
    """The server with its repositories, its faults and the record of what it was asked for."""

    token = "hf_the_one_good_token"

    def __init__(self) -> None:
        self.repos: dict[str, _Repo] = {}
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._requests: list[Request] = []
        self._sent: Counter[str] = Counter()
        self._blobs = tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True)
        self._server = _Server(self)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
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
        self._blobs.cleanup()

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
        tree = {path: self._store(path, source) for path, source in sources.items()}
        listing = "".join(f"{file.sha256} {path}\n" for path, file in tree.items())
        sha = _sha1(listing.encode()).hexdigest()
        with self._lock:
            repo = self.repos.setdefault(repo_id, _Repo(gated, private))
            repo.gated, repo.private = gated, private
            repo.commits[sha] = tree
            repo.branches[branch] = sha
        return sha

    def _store(self, path: str, source: Path) -> _File:
        size = source.stat().st_size
        sha256, git = hashlib.sha256(), _sha1(b"blob %d\0" % size)
        copy = self.blob(uuid.uuid4().hex)
        with source.open("rb") as reader, copy.open("wb") as writer:
            while block := reader.read(_BLOCK):
                sha256.update(block)
                git.update(block)
                writer.write(block)
        copy.replace(self.blob(sha256.hexdigest()))
        if not path.endswith(".safetensors"):
            return _File(path, size, sha256.hexdigest(), git.hexdigest(), None)
        version = "https://git-lfs.github.com/spec/v1"
        pointer = f"version {version}\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
        oid = _sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return _File(path, size, sha256.hexdigest(), oid, len(pointer))

    def blob(self, sha256: str) -> Path:
        """Return where content of this hash is kept."""
        return Path(self._blobs.name, sha256)

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
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def inject(self, *faults: Fault) -> None:
        """Let these things go wrong from now on; of several that apply, the first one does."""
        with self._lock:
            self._faults.extend(faults)

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def take_fault(self, method: str, path: str, span: range | None = None) -> Fault | None:
        """Find the fault that hits this request and count it as used."""
        with self._lock:
            for fault in self._faults:
                if fault.applies(method, path, span):
                    fault.times -= 1
                    return fault
        return None

    def record(self, request: Request) -> None:
        """Note a request."""
        with self._lock:
            self._requests.append(request)

    def count(self, path: str, size: int) -> None:
        """Note body bytes about to be sent."""
        with self._lock:
            self._sent[path] += size

    def forget(self) -> None:
        """Start the record of requests and bytes anew."""
        with self._lock:
            self._requests.clear()
            self._sent.clear()

    def requests(self, path_suffix: str = "", *, method: str | None = None) -> list[Request]:
        """Return the requests so far, in order of arrival."""
        with self._lock:
            seen = list(self._requests)
        return [r for r in seen if r.path.endswith(path_suffix) and method in (None, r.method)]

    def bytes_sent(self, path_suffix: str = "") -> int:
        """Return how many body bytes were sent for paths that end so.

        Bytes count once they go to the socket, so a client that hung up may have seen fewer.
        """
        with self._lock:
            return sum(size for path, size in self._sent.items() if path.endswith(path_suffix))


class _HubError(Exception):
    """An answer that the client turns into an exception of its own, by the error code."""

    def __init__(self, status: int, code: str, message: str, **headers: object) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.headers |= {name.replace("_", "-"): str(value) for name, value in headers.items()}


def _byte_range(header: str | None, size: int) -> range | None:
    """Read a Range header: None if it asks for the whole, empty if beyond the file's end."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    return range(int(first), min(int(last) + 1, size) if last else size)


def _list_tree(tree: _Tree, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
    """List what is below a folder, folders included, as the tree endpoint does."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in tree.items():
        if not path.startswith(prefix):
            continue
        cuts = [i for i, char in enumerate(path) if char == "/" and i >= len(prefix)]
        for name in (path[:cut] for cut in (cuts if recursive else cuts[:1])):
            oid = _sha1(name.encode()).hexdigest()
            entries[name] = {"type": "directory", "path": name, "size": 0, "oid": oid}
        if recursive or not cuts:
            entries[path] = file.describe("path", "oid", "oid")
    return list(entries.values())


_REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)??)"
_REV = r"(?P<rev>[^/]+)"
_ROUTES = [
    (methods.split(), re.compile(pattern), answer)
    for methods, pattern, answer in (
        ("GET", f"/api/models/{_REPO}(?:/revision/{_REV})?", "_model"),
        ("GET", f"/api/models/{_REPO}/tree/{_REV}(?:/(?P<path>.+))?", "_tree"),
        ("POST", f"/api/models/{_REPO}/paths-info/{_REV}", "_paths_info"),
        ("GET HEAD", "/cdn/(?P<sha256>[0-9a-f]{64})/.+", "_cdn"),
        ("GET HEAD", f"/{_REPO}/resolve/{_REV}/(?P<path>.+)", "_resolve"),
    )
]


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report bugs, but not clients that hang up: tests kill them on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: do not wait between them
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        # Read in any case: what is left would be taken for the next request.
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Keep quiet."""

    def _answer(self, body: bytes = b"") -> None:
        self.hub = self.server.hub
        self.body = body
        url = urlsplit(self.path)
        self.name, self.query = unquote(url.path), parse_qs(url.query)
        byte_range, authorized = self.headers.get("Range"), "Authorization" in self.headers
        self.hub.record(Request(self.command, self.name, byte_range, authorized))
        try:
            self._route(url.path)
        except _HubError as error:
            self._send({"error": str(error)}, error.status, error.headers)

    def _route(self, raw_path: str) -> None:
        if fault := self.hub.take_fault(self.command, self.name):
            wait = {} if fault.retry_after is None else {"Retry_After": fault.retry_after}
            raise _HubError(fault.status or 500, "", "This fault was asked for", **wait)
        # Matched before decoding, as a slash in a branch's name comes as %2F.
        for methods, pattern, answer in _ROUTES:
            if self.command in methods and (match := pattern.fullmatch(raw_path)):
                names = {key: unquote(value or "") for key, value in match.groupdict().items()}
                getattr(self, answer)(**names)
                return
        raise _HubError(404, "", "No such page")

    def _model(self, repo_id: str, rev: str) -> None:
        repo, sha, tree = self._find(repo_id, rev or "main")
        siblings = [file.describe("rfilename", "blobId", "sha256") for file in tree.values()]
        if not self._flag("blobs"):
            siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
        info = {
            "id": repo_id,
            "sha": sha,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "tags": [],
            "siblings": siblings,
        }
        self._send(info)

    def _tree(self, repo_id: str, rev: str, path: str) -> None:
        _, sha, tree = self._find(repo_id, rev)
        entries = _list_tree(tree, path, recursive=self._flag("recursive"))
        if path and not entries:
            raise _HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        self._send(entries)

    def _paths_info(self, repo_id: str, rev: str) -> None:
        _, _, tree = self._find(repo_id, rev)
        wanted = parse_qs(self.body.decode()).get("paths", [])
        self._send([entry for entry in _list_tree(tree) if entry["path"] in wanted])

    def _resolve(self, repo_id: str, rev: str, path: str) -> None:
        _, sha, tree = self._find(repo_id, rev, content=True)
        file = tree.get(path)
        if file is None:
            raise _HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        if file.pointer_size is None:
            self._send_file(file.sha256, {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'})
            return
        # Another name for this server: the client follows a HEAD's redirect within a host, but
        # takes the metadata from the redirect itself, and leaves its token behind, if it leads
        # to another host, as a CDN is.
        target = f"/cdn/{file.sha256}/{quote(f'{repo_id}/{sha}/{path}')}"
        headers = {
            "Location": f"http://localhost:{self.hub.port}{target}",
            "X-Repo-Commit": sha,
            "X-Linked-ETag": f'"{file.sha256}"',
            "X-Linked-Size": file.size,
        }
        self._send({"redirect": target}, 302, headers)

    def _cdn(self, sha256: str) -> None:
        if not self.hub.blob(sha256).exists():
            raise _HubError(404, "", "Not found")
        self._send_file(sha256, {"ETag": f'"{sha256}"'})

    def _find(self, repo_id: str, rev: str, *, content: bool = False) -> tuple[_Repo, str, _Tree]:
        """Look up a commit, if it may be seen; a gate is before the files' content alone."""
        authorization = self.headers.get("Authorization")
        trusted = authorization == f"Bearer {self.hub.token}"
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not trusted):
            raise _HubError(404 if authorization else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and not trusted:
            raise _HubError(403 if authorization else 401, "GatedRepo", "Access is restricted")
        sha = repo.branches.get(rev, rev)
        if sha not in repo.commits:
            raise _HubError(404, "RevisionNotFound", "Invalid rev id")
        return repo, sha, repo.commits[sha]

    def _flag(self, name: str) -> bool:
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def _send(
        self, content: object, status: int = 200, headers: Mapping[str, object] | None = None
    ) -> None:
        body = json.dumps(content).encode()
        typed = {"Content-Type": "application/json", "Content-Length": len(body)}
        self._send_head(status, {**typed, **(headers or {})})
        if self.command != "HEAD":
            self._write(body)

    def _send_file(self, sha256: str, headers: Mapping[str, object]) -> None:
        blob = self.hub.blob(sha256)
        size = blob.stat().st_size
        wanted = _byte_range(self.headers.get("Range"), size)
        if wanted is not None and not wanted:
            raise _HubError(416, "", "Range not satisfiable", Content_Range=f"bytes */{size}")
        span = wanted or range(size)
        head = {**headers, "Content-Length": len(span), "Accept-Ranges": "bytes"}
        if wanted:
            head["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        self._send_head(206 if wanted else 200, head)
        if self.command == "GET":
            fault = self.hub.take_fault(self.command, self.name, span)
            self._send_span(blob, span, fault or Fault(self.name))

    def _send_span(self, blob: Path, span: range, fault: Fault) -> None:
        stop = span.stop if fault.after_bytes is None else span.start + fault.after_bytes
        step = _BLOCK if fault.rate is None else min(_BLOCK, max(1, fault.rate // 20))
        with blob.open("rb") as reader:
            reader.seek(span.start)
            for start in range(span.start, stop, step):
                block = bytearray(reader.read(min(step, stop - start)))
                if fault.flip_at is not None and start <= fault.flip_at < start + len(block):
                    block[fault.flip_at - start] ^= 0xFF
                self._write(block)
                if fault.rate is not None:
                    time.sleep(len(block) / fault.rate)
        if stop < span.stop:
            self.close_connection = True
            with suppress(OSError):  # the client may have gone first
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send_head(self, status: int, headers: Mapping[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def _write(self, block: bytes | bytearray) -> None:
        # Counted first: a client that has its answer may ask the record at once.
        self.hub.count(self.name, len(block))
        self.wfile.write(block)
