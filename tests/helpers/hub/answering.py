"""The common ground of all endpoints: who asks, what may be seen, and how an answer goes out."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tests.helpers.hub.errors import HubError
from tests.helpers.hub.faults import Fault
from tests.helpers.hub.repository import BLOCK, Repo, Tree
from tests.helpers.processes import HANG_SECONDS

if TYPE_CHECKING:
    from tests.helpers.hub.running import Hub


class Answering(BaseHTTPRequestHandler):
    """What endpoints are made of."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: do not wait between them
    hub: Hub
    name: str  # the path, decoded and without its query
    query: Mapping[str, list[str]]
    body: bytes
    loses_answer: bool
    ignores_range: bool
    other_headers: Mapping[str, str]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Keep quiet."""

    def find(self, repo_id: str, rev: str, *, content: bool = False) -> tuple[Repo, str, Tree]:
        """Look up a commit, if it may be seen; a gate is before the files' content alone."""
        repo = self.find_repo(repo_id)
        if content and repo.gated and not self._may_read():
            status = 403 if self.authorization else 401
            raise HubError(status, "GatedRepo", "Access is restricted")
        sha = repo.branches.get(rev, rev)
        if sha not in repo.commits:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        return repo, sha, repo.commits[sha].tree

    def find_repo(self, repo_id: str) -> Repo:
        """Look up a repository, if it may be seen."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._may_read()):
            status = 404 if self.authorization else 401
            raise HubError(status, "RepoNotFound", "Repository not found")
        return repo

    def find_writable(self, repo_id: str) -> Repo:
        """Look up a repository that whoever asks may change."""
        repo = self.find_repo(repo_id)
        self.check_writer()
        return repo

    def check_writer(self) -> None:
        """Refuse everyone but the holder of the good token."""
        if not self.authorization:
            raise HubError(401, "", "Invalid username or password.")
        if self.authorization != f"Bearer {self.hub.token}":
            raise HubError(403, "", "Forbidden: your token has no write access here")

    @property
    def authorization(self) -> str | None:
        """The header of that name."""
        return self.headers.get("Authorization")

    def _may_read(self) -> bool:
        return self.authorization in {
            f"Bearer {token}" for token in (self.hub.token, self.hub.reader_token)
        }

    def flag(self, name: str) -> bool:
        """Whether the query sets a flag."""
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def send(
        self, content: object, status: int = 200, headers: Mapping[str, object] | None = None
    ) -> None:
        """Answer with JSON."""
        if self.loses_answer:
            self.hang_up()
            return
        body = json.dumps(content).encode()
        typed = {"Content-Type": "application/json", "Content-Length": len(body)}
        self.send_head(status, {**typed, **(headers or {})})
        if self.command != "HEAD":
            self.write(body)

    def send_head(self, status: int, headers: Mapping[str, object]) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in {**headers, **self.other_headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def write(self, block: bytes | bytearray) -> None:
        """Send a piece of the body."""
        # Counted first: a client that has its answer may ask the record at once.
        self.hub.count(self.name, sent=len(block))
        self.wfile.write(block)

    def hang_up(self) -> None:
        """Drop the connection."""
        self.close_connection = True
        with suppress(OSError):  # the client may have gone first
            self.connection.shutdown(socket.SHUT_RDWR)

    def send_span(self, blob: Path, span: range, fault: Fault) -> None:
        """Send a part of a file, as well as a fault allows."""
        with blob.open("rb") as reader:
            reader.seek(span.start)
            for block in _blocks(reader, span, fault):
                self.write(block)
        if fault.after_bytes is not None:
            self.hang_up()

    def receive(self, size: int, fault: Fault) -> Path | None:
        """Keep the body in a file; None if the fault breaks the connection on the way."""
        path = self.hub.blobs.path(f"incoming-{id(self)}-{time.monotonic_ns()}")
        with path.open("wb") as writer:
            for block in _blocks(self.rfile, range(size), fault):
                self.hub.count(self.name, received=len(block))
                writer.write(block)
        if fault.after_bytes is None and path.stat().st_size == size:
            return path
        path.unlink()
        self.hang_up()
        return None


def _blocks(reader: BinaryIO | Any, span: range, fault: Fault) -> Any:
    """Read a span in blocks, as late, as slow, as short and as wrong as the fault says."""
    stop = span.stop if fault.after_bytes is None else span.start + fault.after_bytes
    step = BLOCK if fault.rate is None else min(BLOCK, max(1, fault.rate // 20))
    held = span.start + fault.held_at if fault.hold else span.start
    for start in (*range(span.start, held, step), *range(held, stop, step)):
        if fault.hold and start == held:
            fault.hold.wait(HANG_SECONDS)
        end = held if start < held else stop
        block = bytearray(reader.read(min(step, end - start)))
        if fault.flip_at is not None and start <= fault.flip_at < start + len(block):
            block[fault.flip_at - start] ^= 0xFF
        yield block
        if fault.rate is not None:
            time.sleep(len(block) / fault.rate)
